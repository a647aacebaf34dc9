"""Digests: a graph or engine is known by everything it depends on, never by the existence of a file."""

import hashlib
import json
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from cachesmith import __version__
from cachesmith.policies import CachesmithError
from cachesmith.policies.bundle.manifest import Build, Range
from cachesmith.sampling.requests.contents import plain

_FORMAT = 2
"""Raise it when the way engines are built changes."""


def versions() -> dict[str, str]:
    """Versions of what shapes a graph."""
    found = {"cachesmith": __version__}
    for name in ("torch", "diffusers", "onnx", "onnxscript"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def digest(value: Any) -> str:
    """Sha256 of a value made of plain data, tensors, arrays and pictures: of these, of all their contents."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_plain).encode()).hexdigest()


@torch.no_grad()
def weights_digest(modules: Iterable[nn.Module]) -> str:
    """Sha256 of every byte of the modules' parameters and buffers, with names, shapes and dtypes."""
    found = hashlib.sha256()
    for place, module in enumerate(modules):
        # a state dict lacks buffers that are not saved, which are constants of a graph all the same
        for name, value in sorted({**module.state_dict(), **dict(module.named_buffers())}.items()):
            found.update(f"{place}:{name}:{value.dtype}:{tuple(value.shape)}:".encode())
            found.update(_bytes(value))
    return found.hexdigest()


def engine_digest(key: str, ranges: dict[str, Range], target: str, build: Build) -> str:
    """Sha256 of what an engine depends on: its graph, its shapes and how it is built."""
    shapes = {name: limits.model_dump() for name, limits in ranges.items()}
    return digest([_FORMAT, key, shapes, target, build.model_dump(mode="json")])


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return hashlib.sha256(_bytes(value)).hexdigest() + str(tuple(value.shape))
    try:
        return plain(value)
    except CachesmithError:
        return str(value)


def _bytes(value: Tensor) -> memoryview:
    flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy().data)
