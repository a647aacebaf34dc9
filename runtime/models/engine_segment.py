"""A part of the network as a function of flat tensors: what an engine computes, and with which inputs."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cachesmith.policies import EngineError

BATCH, TOKENS = "batch", "tokens"

Arguments = Mapping[str, Any]
Constant = bool | int | float | str


@dataclass(frozen=True)
class Slot:
    """The place of a tensor in an argument; the tensor is the flat input `name`, a `complex` one as pairs of reals."""

    name: str
    complex: bool = False


@dataclass(frozen=True)
class Interface:
    """Flat inputs and outputs of a segment.

    `streams` come first, then the tensors in the slots of `templates`: for every member its arguments beside the
    streams. `returns` names what a member returns; None for what it never does. `axes` has for every input its fixed
    extents and the names of its variable ones.
    """

    streams: tuple[str, ...]
    outputs: tuple[str, ...]
    returns: tuple[str, ...]
    templates: tuple[Arguments, ...]
    axes: Mapping[str, tuple[str | int, ...]]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the flat inputs."""
        slots = (name for t in self.templates for value in t.values() for name in slots_in(value))
        return (*self.streams, *dict.fromkeys(slots))

    @property
    def constants(self) -> dict[str, Constant]:
        """What is no tensor among the arguments, by flat name: it is a part of the graph."""
        return {
            k: v
            for t in self.templates[:1]
            for name, value in t.items()
            for k, v in constants(name, value).items()
        }


class FlatSegment(nn.Module):
    """Consecutive blocks, or one submodule of a block, that take and return flat tensors in `interface`'s order."""

    def __init__(self, members: tuple[nn.Module, ...], interface: Interface):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.interface = interface
        known = inspect.signature(members[0].forward).parameters
        first = next(iter(known))
        self.arguments = {name: name if name in known else first for name in interface.streams}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """inputs: streams [B, tokens, C], then conditions. Returns the streams in `interface.outputs`."""
        values = dict(zip(self.interface.inputs, tensors, strict=True))
        batch = tensors[0].shape[0]
        for name, axes in self.interface.axes.items():
            if axes[:1] == (BATCH,):
                # known before anything is traced, since some blocks divide one batch by another
                torch._check(values[name].shape[0] == batch)  # type: ignore[no-untyped-call]
        for member, template in zip(self.members, self.interface.templates, strict=True):
            streams = {self.arguments[name]: values[name] for name in self.interface.streams}
            result = member(**streams, **{name: _filled(value, values) for name, value in template.items()})
            results = result if isinstance(result, tuple | list) else (result,)
            returned = dict(zip(self.interface.returns, results, strict=True))
            values |= {name: returned[name] for name in self.interface.streams}
        return tuple(values[name] for name in self.interface.outputs)


def tensors(name: str, value: Any) -> dict[str, Tensor]:
    """All tensors in an argument, by flat name."""
    return {place: leaf for place, leaf in _leaves(name, value) if isinstance(leaf, Tensor)}


def real(tensor: Tensor) -> Tensor:
    """What engines are given: a complex tensor [...] as its real and imaginary parts [..., 2]."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def constants(name: str, value: Any) -> dict[str, Constant]:
    """All that is no tensor in an argument, by flat name; nothing for what is empty, None or False."""
    leaves = ((place, leaf) for place, leaf in _leaves(name, value) if not isinstance(leaf, Tensor | Slot))
    return {place: leaf for place, leaf in leaves if leaf is not None and leaf is not False}


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    match value:
        case dict():
            for key, item in value.items():
                yield from _leaves(f"{name}.{key}", item)
        case list() | tuple():
            for place, item in enumerate(value):
                yield from _leaves(f"{name}.{place}", item)
        case Tensor() | Slot() | bool() | int() | float() | str() | None:
            yield name, value
        case _:
            raise EngineError(
                f"the blocks are given a {type(value).__name__} as `{name}`, which no graph can hold"
            )


def template(name: str, value: Any, shared: Mapping[str, Tensor], member: int) -> Any:
    """Put slots in the place of tensors. One that is not the first member's, in `shared`, has a slot of its own."""
    match value:
        case Tensor():
            own = member > 0 and shared.get(name) is not value
            return Slot(f"{name}:{member}" if own else name, value.is_complex())
        case dict():
            return {key: template(f"{name}.{key}", item, shared, member) for key, item in value.items()}
        case list() | tuple():
            return tuple(template(f"{name}.{i}", item, shared, member) for i, item in enumerate(value))
        case _:
            return value


def _filled(value: Any, values: Mapping[str, Tensor]) -> Any:
    """Put tensors in the place of slots."""
    match value:
        case Slot():
            tensor = values[value.name]
            return torch.view_as_complex(tensor) if value.complex else tensor
        case dict():
            return {key: _filled(item, values) for key, item in value.items()}
        case tuple():
            return tuple(_filled(item, values) for item in value)
        case _:
            return value


def slots_in(value: Any) -> Iterator[str]:
    """Names of all slots in an argument, in order."""
    match value:
        case Slot():
            yield value.name
        case dict():
            for item in value.values():
                yield from slots_in(item)
        case tuple():
            for item in value:
                yield from slots_in(item)
