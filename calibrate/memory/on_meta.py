"""Modules and pipelines without weights."""

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cachesmith.calibrate.memory.live_bytes import LiveBytes
from cachesmith.runtime.hooks.patch import patched

META = torch.device("meta")


def to_meta(value: Any) -> Any:
    """Tensors in tuples, lists and dicts, without their contents."""
    match value:
        case Tensor():
            return torch.empty_like(value, device=META)
        case tuple() | list():
            return type(value)(to_meta(item) for item in value)
        case dict():
            return {name: to_meta(item) for name, item in value.items()}
        case _:
            return value


def without_weights(module: Any) -> Any:
    """The same module on the meta device, in its dtype; itself, if it is there."""
    if module.device == META:
        return module
    with META:
        copy = type(module).from_config(module.config)
    copy.to(module.dtype).eval().requires_grad_(False)
    for name in ("use_tiling", "use_slicing"):
        if hasattr(module, name):
            setattr(copy, name, getattr(module, name))
    return copy


def pipeline_without_weights(folder: Path, dtype: torch.dtype) -> Any:
    """A local pipeline whose modules are on the meta device; tokenizers and schedulers are real.

    Raises whatever its files and classes raise, where they do not make one.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = {
        name: _component(folder / name, entry[0], entry[1], dtype)
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2
    }
    kind = getattr(importlib.import_module("diffusers"), index["_class_name"])
    settings = {n: v for n, v in index.items() if not n.startswith("_") and n not in parts}
    return kind(**parts, **settings)


def _component(folder: Path, library: str | None, name: str | None, dtype: torch.dtype) -> Any:
    if library is None or name is None:
        return None
    kind = getattr(importlib.import_module(library), name)
    if not issubclass(kind, nn.Module):
        return kind.from_pretrained(folder)
    with META:
        if library == "diffusers":
            module = kind.from_config(kind.load_config(folder))
        else:
            module = kind._from_config(kind.config_class.from_pretrained(folder))
    return module.to(dtype).eval().requires_grad_(False)


class _Flash(torch.autograd.Function):
    """Attention that keeps its inputs, its output and one number a row, as fused kernels do."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, output, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


@contextmanager
def counted() -> Iterator[LiveBytes]:
    """Count bytes on the meta device, where attention would else be taken apart."""

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        output: Tensor = _Flash.apply(query, key, value)  # type: ignore[no-untyped-call]
        return output

    functional: Any = torch.nn.functional
    with patched(functional, "scaled_dot_product_attention", attention), LiveBytes() as mode:
        yield mode
