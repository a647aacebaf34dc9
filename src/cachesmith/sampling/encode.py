"""Text encoders outside of what is repeated and differentiated."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from cachesmith.policies import CachesmithError
from cachesmith.runtime.hooks.patch import patched
from cachesmith.sampling.requests.contents import plain

LIMIT = 4 * 2**30
"""Bytes of encoded prompts that are kept on the host."""


@contextmanager
def encoded_once(pipe: Any, limit: int = LIMIT) -> Iterator[None]:
    """Encode every list of prompts once, under no_grad, and keep the result on the host (at most `limit` bytes).

    Holds for pipelines with `encode_prompt`, while the text encoders stay as they are; pictures are the same to the
    bit. A call that gives other arguments, or embeddings, is a call of its own.
    """
    kept: OrderedDict[str, Any] = OrderedDict()

    def remembered(encode: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        key = _key(args, kwargs)
        if key is None:
            return encode(*args, **kwargs)
        if key not in kept:
            kept[key] = _moved(encode(*args, **kwargs), "cpu")
            while len(kept) > 1 and sum(map(_size, kept.values())) > limit:
                kept.popitem(last=False)
        kept.move_to_end(key)
        device = kwargs.get("device") or getattr(pipe, "_execution_device", pipe.device)
        return _moved(kept[key], device)

    with _encoding(pipe, remembered):
        yield


@contextmanager
def encoded_without_gradients(pipe: Any) -> Iterator[None]:
    """Encode prompts under no_grad, whatever is differentiated around it: the graph of a text encoder is large."""
    with _encoding(pipe, lambda encode, *args, **kwargs: encode(*args, **kwargs)):
        yield


@contextmanager
def _encoding(pipe: Any, call: Callable[..., Any]) -> Iterator[None]:
    encode = getattr(pipe, "encode_prompt", None)
    if encode is None:
        yield
        return

    @wraps(encode)
    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return call(encode, *args, **kwargs)

    encode_prompt.__dict__["__signature__"] = signature(encode)
    with patched(pipe, "encode_prompt", encode_prompt):
        yield


def _key(args: Any, kwargs: dict[str, Any]) -> str | None:
    """The contents of the arguments; None where tensors or strange objects make them a call of its own."""
    named = {name: value for name, value in kwargs.items() if name != "device"}
    values = [value for value in (*args, *named.values()) if not isinstance(value, torch.device)]
    if any(isinstance(value, Tensor) for value in values):
        return None
    try:
        return repr(
            (plain([v for v in args if not isinstance(v, torch.device | torch.dtype)]), _plain(named))
        )
    except CachesmithError:
        return None


def _plain(named: dict[str, Any]) -> Any:
    return {name: str(v) if isinstance(v, torch.dtype) else plain(v) for name, v in sorted(named.items())}


def _moved(value: Any, device: Any) -> Any:
    """Tensors in tuples, lists and dicts, moved to a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(_moved(item, device) for item in value)
    if isinstance(value, dict):
        return {name: _moved(item, device) for name, item in value.items()}
    return value


def _size(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, tuple | list):
        return sum(map(_size, value))
    return sum(map(_size, value.values())) if isinstance(value, dict) else 0
