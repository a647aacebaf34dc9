"""A part of the network as a function of flat tensors: what an engine computes, and with which inputs.

To export another model, add an entry to `PORTS`; the conformance suite in `tests/export` covers it from then on.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cachesmith.policies import EngineError
from cachesmith.runtime.models.adapters import adapter_for
from cachesmith.runtime.models.units import block_lists

BATCH, TOKENS = "batch", "tokens"


@dataclass(frozen=True)
class Condition:
    """An argument beside the streams: its tensors by name (several: a tuple), and the names of their axes.

    An axis is `batch`, `tokens` (of all streams together), or None where the extent is fixed.
    """

    argument: str
    tensors: tuple[str, ...]
    axes: tuple[str | None, ...]


@dataclass(frozen=True)
class Ports:
    """What the blocks of one transformer class are given: their conditions, and arguments that may be left out.

    `outer` are submodules of blocks that the transformer calls itself.
    """

    conditions: tuple[Condition, ...]
    outer: tuple[str, ...] = ()


PORTS: dict[str, Ports] = {
    "DiTTransformer2DModel": Ports(
        conditions=(
            Condition("timestep", ("timestep",), (BATCH,)),
            Condition("class_labels", ("class_labels",), (BATCH,)),
        ),
        outer=("transformer_blocks.0.norm1.emb",),
    ),
    "FluxTransformer2DModel": Ports(
        conditions=(
            Condition("temb", ("temb",), (BATCH, None)),
            Condition("image_rotary_emb", ("rotary_cos", "rotary_sin"), (TOKENS, None)),
        ),
    ),
}


def ports_for(transformer: nn.Module) -> Ports:
    """Return the ports of `transformer`'s class; raise `EngineError` listing the known ones."""
    name = type(transformer).__name__
    if name not in PORTS:
        raise EngineError(
            f"{name} cannot be exported; known: {', '.join(sorted(PORTS))}. Add it to runtime/models/engine_segment.py"
        )
    return PORTS[name]


@dataclass(frozen=True)
class Interface:
    """Flat inputs and outputs of a segment: `streams` (in the order of a block's result), then its conditions."""

    streams: tuple[str, ...]
    outputs: tuple[str, ...]
    conditions: tuple[Condition, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the flat inputs."""
        return (*self.streams, *(name for c in self.conditions for name in c.tensors))

    def axes(self, name: str, fixed: tuple[int, ...]) -> tuple[str | int, ...]:
        """Name the variable axes of input `name`; the others have the extents `fixed`."""
        if name in self.streams:
            own = f"{name}_{TOKENS}" if len(self.streams) > 1 else TOKENS
            return (BATCH, own, *fixed[2:])
        (condition,) = (c for c in self.conditions if name in c.tensors)
        return tuple(
            extent if axis is None else axis for axis, extent in zip(condition.axes, fixed, strict=True)
        )


class FlatSegment(nn.Module):
    """Consecutive blocks, or one submodule of a block, that take and return flat tensors in `interface`'s order."""

    def __init__(self, members: tuple[nn.Module, ...], interface: Interface):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.interface = interface
        known = inspect.signature(members[0].forward).parameters
        first = next(iter(known))
        self.arguments = tuple(name if name in known else first for name in interface.streams)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """inputs: streams [B, tokens, C], then conditions. Returns the streams in `interface.outputs`."""
        values = dict(zip(self.interface.inputs, tensors, strict=True))
        shared = {c.argument: _packed(c, values) for c in self.interface.conditions}
        streams = tuple(values[name] for name in self.interface.streams)
        for member in self.members:
            result = member(**dict(zip(self.arguments, streams, strict=True)), **shared)
            streams = result if isinstance(result, tuple) else (result,)
        by_name = dict(zip(self.interface.streams, streams, strict=True))
        return tuple(by_name[name] for name in self.interface.outputs)


def segment_interface(transformer: nn.Module, start: int, stop: int) -> Interface:
    """Return the interface of blocks `start` to `stop`, which must be of one list."""
    adapter = adapter_for(transformer)
    blocks = block_lists(transformer)
    (streams,) = {entry.streams for entry, _ in blocks[start:stop]}
    outputs = tuple(s for s in streams if stop < len(blocks) or s in adapter.live)
    return Interface(streams, outputs, ports_for(transformer).conditions)


def flatten(conditions: tuple[Condition, ...], arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the conditions' tensors by flat name; raise `EngineError` if one was not given."""
    values: dict[str, Tensor] = {}
    for condition in conditions:
        value = arguments.get(condition.argument)
        parts = value if isinstance(value, tuple | list) else (value,)
        if len(parts) != len(condition.tensors) or not all(isinstance(p, Tensor) for p in parts):
            raise EngineError(
                f"the blocks were called without `{condition.argument}`, which the engines need"
            )
        values.update(zip(condition.tensors, parts, strict=True))
    return values


def _packed(condition: Condition, values: Mapping[str, Tensor]) -> Tensor | tuple[Tensor, ...]:
    parts = tuple(values[name] for name in condition.tensors)
    return parts[0] if len(parts) == 1 else parts
