"""The units of a loaded transformer: which modules belong to each, and what flows in and out."""

from dataclasses import dataclass
from typing import assert_never

from torch import nn

from cachesmith.policies import Modules, PolicyError, Segments, Stack, Units

from .adapters import Adapter, BlockList, adapter_for


@dataclass(frozen=True, eq=False)
class Unit:
    """A part of the network that is computed or forecast as a whole.

    `members` are called one after the other; the first one's arguments named in `reads` are the input, the last one's
    result is the output, in the same order. `streams` are the ones that are cached. For a run of blocks the cached
    output is what they add to their input (`residual`), for a module it is the plain output. A lane is one stream of
    one unit; `lane` is the index of the unit's first. `share` is the unit's part of all blocks.
    """

    name: str
    group: str
    members: tuple[nn.Module, ...]
    reads: tuple[str, ...]
    streams: tuple[str, ...]
    residual: bool
    share: float
    lane: int


def block_lists(transformer: nn.Module, adapter: Adapter) -> list[tuple[BlockList, nn.Module]]:
    """Return every block with the list it belongs to, in execution order."""
    return [(entry, block) for entry in adapter.lists for block in transformer.get_submodule(entry.path).children()]


def resolve_units(transformer: nn.Module, units: Units) -> tuple[Unit, ...]:
    """Find the units of `transformer`; raise `PolicyError` when a segment starts past the last block."""
    adapter = adapter_for(transformer)
    blocks = block_lists(transformer, adapter)
    match units:
        case Stack():
            return _segments(blocks, adapter, (0,), "stack")
        case Segments(starts=starts):
            return _segments(blocks, adapter, starts, "segment")
        case Modules():
            return _modules(blocks)
        case _:
            assert_never(units)


def _segments(
    blocks: list[tuple[BlockList, nn.Module]], adapter: Adapter, starts: tuple[int, ...], group: str
) -> tuple[Unit, ...]:
    if starts[-1] >= len(blocks):
        raise PolicyError(f"a segment starts at block {starts[-1]}, but the model has {len(blocks)}; recalibrate it")
    units: list[Unit] = []
    for index, (start, stop) in enumerate(zip(starts, (*starts[1:], len(blocks)), strict=True)):
        run = blocks[start:stop]
        streams = run[0][0].streams
        cached = tuple(s for s in streams if stop < len(blocks) or s in adapter.live)
        name = group if group == "stack" else f"segment.{index}"
        members = tuple(block for _, block in run)
        share = len(run) / len(blocks)
        units.append(Unit(name, name, members, streams, cached, True, share, _lanes(units)))
    return tuple(units)


def _modules(blocks: list[tuple[BlockList, nn.Module]]) -> tuple[Unit, ...]:
    units: list[Unit] = []
    for index, (entry, block) in enumerate(blocks):
        share = 1 / (len(blocks) * len(entry.modules))
        for span in entry.modules:
            members = tuple(block.get_submodule(path) for path in span.members)
            name = f"{span.group}.{index}"
            units.append(Unit(name, span.group, members, span.streams, span.streams, False, share, _lanes(units)))
    return tuple(units)


def _lanes(units: list[Unit]) -> int:
    return units[-1].lane + len(units[-1].streams) if units else 0
