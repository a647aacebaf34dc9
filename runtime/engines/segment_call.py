"""What a loaded segment is, and whether it can take certain inputs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from cachesmith.policies import EngineError
from cachesmith.policies.bundle.manifest import SegmentEntry, TensorSpec


@runtime_checkable
class SegmentCall(Protocol):
    """A loaded segment.

    Takes the inputs named in its `SegmentEntry`, on the backend's device, and returns its outputs in the entry's
    order. The outputs belong to the caller: a later call never writes to them.
    """

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Compute the segment."""


@dataclass(frozen=True)
class LoadOptions:
    """Where and how a backend runs. `cuda_graphs`: capture one CUDA graph per segment and shape, and replay it."""

    device: torch.device
    cuda_graphs: bool = False


class Port(NamedTuple):
    """An input or output that a loaded engine says it has. `axes`: None for an extent, or all, that it leaves open."""

    name: str
    side: Literal["input", "output"]
    dtype: str
    axes: tuple[int | None, ...] | None


def check_ports(entry: SegmentEntry, ports: Iterable[Port], *, unused: bool) -> None:
    """Raise `EngineError` unless an engine's inputs and outputs are those of the manifest.

    unused: whether the engine leaves out inputs that nothing in it reads.
    """
    found = {port.name: port for port in ports}
    listed: list[tuple[Literal["input", "output"], TensorSpec]] = [
        *(("input", spec) for spec in entry.inputs),
        *(("output", spec) for spec in entry.outputs),
    ]
    for side, spec in listed:
        port = found.pop(spec.name, None)
        if port is None and unused and side == "input":
            continue
        if port is None or not _agrees(entry, side, spec, port):
            has = "none" if port is None else f"{port.side} {port.dtype} {_shape(port.axes)}"
            raise EngineError(
                f"{entry.name}: the manifest has the {side} {spec.name} {spec.dtype} {_shape(spec.axes)}, the engine "
                f"has {has}; export again"
            )
    if found:
        raise EngineError(
            f"{entry.name}: the engine has tensors the manifest does not list ({', '.join(found)[:200]}); export again"
        )


def _agrees(entry: SegmentEntry, side: str, spec: TensorSpec, port: Port) -> bool:
    if (side, spec.dtype) != (port.side, port.dtype):
        return False
    if port.axes is None:
        return True
    return len(port.axes) == len(spec.axes) and all(
        extent is None or _allows(entry, axis, extent)
        for axis, extent in zip(spec.axes, port.axes, strict=True)
    )


def _allows(entry: SegmentEntry, axis: int | str, extent: int) -> bool:
    if isinstance(axis, int):
        return axis == extent
    return entry.ranges[axis].min <= extent <= entry.ranges[axis].max


def _shape(axes: tuple[int | str | None, ...] | None) -> str:
    return "" if axes is None else f"[{', '.join('?' if a is None else str(a) for a in axes)}]"


def mismatch(entry: SegmentEntry, inputs: Mapping[str, Tensor], device: torch.device) -> str | None:
    """Say why the engine cannot take these inputs, naming tensor, value and limit; None when it can."""
    extents: dict[str, int] = {}
    for spec in entry.inputs:
        value = inputs[spec.name]
        if value.device != device:
            return f"{spec.name} is on {value.device}, the engines on {device}"
        if str(value.dtype) != f"torch.{spec.dtype}":
            return f"{spec.name} is {value.dtype}, exported as torch.{spec.dtype}"
        reason = _shape_mismatch(entry, spec, tuple(value.shape), extents)
        if reason is not None:
            return f"{spec.name} has shape {tuple(value.shape)}: {reason}"
    return None


def _shape_mismatch(
    entry: SegmentEntry, spec: TensorSpec, shape: tuple[int, ...], extents: dict[str, int]
) -> str | None:
    if len(shape) != len(spec.axes):
        return f"{entry.name} was exported with {len(spec.axes)} axes"
    for axis, extent in zip(spec.axes, shape, strict=True):
        if isinstance(axis, int):
            if axis != extent:
                return f"{entry.name} was exported with {axis} in place of {extent}"
        elif extents.setdefault(axis, extent) != extent:
            return f"{axis} = {extent}, but {extents[axis]} in another input"
        elif not (limits := entry.ranges[axis]).min <= extent <= limits.max:
            return f"{axis} = {extent} is outside the exported range {limits.min} to {limits.max}"
    return None


def new_outputs(
    entry: SegmentEntry, inputs: Mapping[str, Tensor], device: torch.device
) -> tuple[Tensor, ...]:
    """Return uninitialised outputs of the shapes that these inputs lead to; raise `EngineError` if they do not fit."""
    extents = {
        axis: extent
        for spec in entry.inputs
        for axis, extent in zip(spec.axes, inputs[spec.name].shape, strict=True)
        if isinstance(axis, str)
    }
    shapes = [tuple(extents[a] if isinstance(a, str) else a for a in spec.axes) for spec in entry.outputs]
    kinds = [getattr(torch, spec.dtype) for spec in entry.outputs]
    try:
        return tuple(torch.empty(s, dtype=k, device=device) for s, k in zip(shapes, kinds, strict=True))
    except RuntimeError as error:
        raise EngineError(
            f"{entry.name}: no memory for outputs of shapes {shapes} ({str(error)[:120]}); sample fewer at once"
        ) from None
