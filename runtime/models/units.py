"""The units of a loaded transformer: which modules belong to each, and what flows in and out."""

from dataclasses import dataclass
from typing import assert_never

from torch import nn

from cachesmith.policies import GUIDANCE, Follower, Modules, PolicyError, Segments, Stack, Units
from cachesmith.runtime.models.adapters import (
    JOINED,
    Adapter,
    BlockList,
    ModuleSpan,
    adapter_for,
    is_compiled,
)

IMAGE = "hidden_states"


@dataclass(frozen=True, eq=False)
class Unit:
    """A part of the network that is computed or forecast as a whole.

    `members` are called one after the other; `reads` has the argument names of each one's streams. The first one's are
    the input, the last one's result, in the order of its names, is the output. `streams` are the ones that are cached.
    For a run of blocks the cached output is what they add to their input (`residual`), for a module it is the plain
    output. A `joined` run begins with separate streams and ends with one that is all of them. A lane is one stream of
    one unit; `lane` is the index of the unit's first. `share` is the unit's part of all blocks. A `tokenwise` unit has
    one member and one stream [B, N, D], and computes every token by itself.

    The unit `guidance` is one half of guidance, its `follower`, as it differs from the other; it has no members.

    `entry` is the first heavy submodule inside a run of blocks, and the argument that carries the image stream there:
    what it is given is the modulated input. None where the adapter does not describe it, or the block is compiled.
    """

    name: str
    group: str
    members: tuple[nn.Module, ...]
    reads: tuple[tuple[str, ...], ...]
    streams: tuple[str, ...]
    residual: bool
    joined: bool
    share: float
    lane: int
    tokenwise: bool = False
    entry: tuple[nn.Module, str] | None = None
    follower: Follower | None = None

    @property
    def main(self) -> int:
        """The index of the image stream; joined with the others, if they are."""
        return self.streams.index(IMAGE) if IMAGE in self.streams else 0


def block_lists(transformer: nn.Module) -> list[tuple[BlockList, nn.Module]]:
    """Return every block with the list it belongs to, in execution order.

    Raises `PolicyError` when there is no adapter for the transformer.
    """
    return [
        (entry, block)
        for entry in adapter_for(transformer).lists
        for block in transformer.get_submodule(entry.path).children()
    ]


def resolve_units(transformer: nn.Module, units: Units) -> tuple[Unit, ...]:
    """Find the units of `transformer`; raise `PolicyError` when segments do not fit the model."""
    adapter = adapter_for(transformer)
    blocks = block_lists(transformer)
    match units:
        case Stack(follower=follower):
            (stack,) = _segments(blocks, adapter, (0,), "stack")
            return (stack,) if follower is None else (stack, _guidance(stack, follower))
        case Segments():
            return _segments(blocks, adapter, units.resolved(len(blocks)), "segment")
        case Modules():
            return _modules(blocks)
        case _:
            assert_never(units)


def _segments(
    blocks: list[tuple[BlockList, nn.Module]], adapter: Adapter, starts: tuple[int, ...], group: str
) -> tuple[Unit, ...]:
    units: list[Unit] = []
    for index, (start, stop) in enumerate(zip(starts, (*starts[1:], len(blocks)), strict=True)):
        run = blocks[start:stop]
        streams = run[-1][0].streams
        unit = Unit(
            name=group if group == "stack" else f"{group}.{index}",
            group=group if group == "stack" else f"{group}.{index}",
            members=tuple(block for _, block in run),
            reads=tuple(entry.streams for entry, _ in run),
            streams=tuple(s for s in streams if stop < len(blocks) or s in adapter.live),
            residual=True,
            joined=streams == JOINED != run[0][0].streams,
            share=len(run) / len(blocks),
            lane=_lanes(units),
            entry=_entry(*run[0]),
        )
        units.append(unit)
    return tuple(units)


def _guidance(stack: Unit, follower: Follower) -> Unit:
    return Unit(
        name=GUIDANCE, group=GUIDANCE, members=(), reads=(), streams=stack.streams, residual=False, joined=False,
        share=stack.share, lane=len(stack.streams), follower=follower,
    )  # fmt: skip


def _entry(entry: BlockList, block: nn.Module) -> tuple[nn.Module, str] | None:
    if not entry.modules or is_compiled(block):
        return None
    span = entry.modules[0]
    return block.get_submodule(span.start), IMAGE if IMAGE in span.streams else span.streams[0]


def _modules(blocks: list[tuple[BlockList, nn.Module]]) -> tuple[Unit, ...]:
    units: list[Unit] = []
    for index, (entry, block) in enumerate(blocks):
        if not entry.modules:
            raise PolicyError(
                f"the modules of {type(block).__name__} are not described in runtime/models/adapters.py; "
                "use a policy with units `stack` or `segment`"
            )
        if is_compiled(block):
            raise PolicyError(
                f"block {index} is compiled as a whole, so its modules cannot be cached one by one; "
                "use a policy with units `stack` or `segment`, or do not compile the blocks"
            )
        spans = [span for span in entry.modules if _present(block, span)]
        for span in spans:
            unit = Unit(
                name=f"{span.group}.{index}",
                group=span.group,
                members=tuple(block.get_submodule(path) for path, _ in span.members),
                reads=tuple(streams for _, streams in span.members),
                streams=span.streams,
                residual=False,
                joined=False,
                share=1 / (len(blocks) * len(spans)),
                lane=_lanes(units),
                tokenwise=span.tokenwise,
            )
            units.append(unit)
    if not units:
        raise PolicyError(
            "this model's modules are not described; use a policy with units `stack` or `segment`"
        )
    return tuple(units)


def _present(block: nn.Module, span: ModuleSpan) -> bool:
    """Whether the block has the span: the last block of some models lacks a part of what the others have."""
    return not span.optional or getattr(block, span.start, None) is not None


def _lanes(units: list[Unit]) -> int:
    return units[-1].lane + len(units[-1].streams) if units else 0
