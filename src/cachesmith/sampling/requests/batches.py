"""Which requests can be sampled in one call, and the arguments of that call."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from cachesmith.policies import CachesmithError
from cachesmith.sampling.requests.contents import plain
from cachesmith.sampling.requests.files import File
from cachesmith.sampling.requests.request import Request

_TEXTS = ("prompt", "prompt_2", "prompt_3")
PER_SAMPLE = (*_TEXTS, *(f"negative_{name}" for name in _TEXTS), "class_labels")
"""Pipeline arguments that are given as lists, one entry a sample."""

_PARTS = ("height", "width", "num_frames", "guidance_scale", "true_cfg_scale", "strength")
"""Arguments by which samples are told apart where quality is given for each part of them."""


def batches(requests: Sequence[Request], size: int) -> list[list[int]]:
    """Return places of requests that one call samples together, at most `size` a call.

    They share every argument that is not per sample, and the shapes of the tensors that are joined, wherever in the
    list they stand. Requests with pictures are sampled alone: pipelines take several pictures for several things.
    """
    groups: dict[str, list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(_key(request, place), []).append(place)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


def arguments_of(requests: Sequence[Request]) -> dict[str, Any]:
    """Return the arguments of one call that samples `requests`, which `batches` put together."""
    loaded = [request.loaded() for request in requests]
    return {name: _joined(name, [each[name] for each in loaded]) for name in loaded[0]}


def differing_arguments(requests: Sequence[Request]) -> tuple[str, ...]:
    """Name each request by those of `_PARTS` in which they differ, such as `height=48 width=32`; "" if in none."""
    differing = [name for name in _PARTS if len({repr(r.arguments.get(name)) for r in requests}) > 1]
    return tuple(
        " ".join(f"{name}={r.arguments[name]}" for name in differing if name in r.arguments) for r in requests
    )


def _key(request: Request, place: int) -> str:
    return json.dumps(
        {name: _shared(name, value, place) for name, value in sorted(request.arguments.items())}
    )


def _shared(name: str, value: Any, place: int) -> Any:
    """What requests must have in common to be sampled together."""
    if name in PER_SAMPLE:
        return value is None
    tensor = value.load() if isinstance(value, File) and value.is_tensor else value
    if _stacks(tensor):
        return ["tensor", list(tensor.shape), str(tensor.dtype)]
    if _holds_objects(value):
        return ["alone", place]
    return plain(value)


def _stacks(value: Any) -> bool:
    torch = sys.modules.get("torch")  # a tensor cannot be there before torch is
    return torch is not None and isinstance(value, torch.Tensor) and value.ndim > 1 and len(value) == 1


def _holds_objects(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_objects, value))
    return not isinstance(value, str | int | float | bool | dict | None)


def _joined(name: str, values: list[Any]) -> Any:
    if name in PER_SAMPLE:
        return None if values[0] is None else values
    if len(values) > 1 and _stacks(values[0]):
        import torch

        return torch.cat(values)
    return values[0]


def check_count(found: int, requests: Sequence[Request]) -> None:
    """Raise `CachesmithError` where a call gave another number of samples than it was asked for."""
    if found != len(requests):
        where = requests[0].where or f"seed {requests[0].seed}"
        raise CachesmithError(
            f"the pipeline gave {found} samples for {len(requests)} request(s) ({where}); give tensors whose first "
            "dimension is 1, and one prompt a request"
        )
