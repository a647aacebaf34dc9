"""The units of a loaded transformer: which modules belong to each, and what flows in and out."""

from dataclasses import dataclass, replace
from typing import assert_never

import torch
from torch import nn

from cachesmith.policies import GUIDANCE, MAIN, Follower, Modules, PolicyError, Segments, Stack, Units
from cachesmith.runtime.features import Feature, difference
from cachesmith.runtime.models.adapter import JOINED, Adapter, BlockList, ModuleSpan, is_compiled
from cachesmith.runtime.models.adapters import adapter_for
from cachesmith.runtime.models.described import check_described

IMAGE_STREAM = "hidden_states"


@dataclass(frozen=True, eq=False)
class BlockRun:
    """Blocks called one after the other; what is cached is what they add to their input.

    `members` are the blocks, `reads` the argument names of each one's streams: the first one's are the input, the last
    one's result, in the order of its names, is the output. `streams` are the ones that are cached. A `joined` run
    begins with separate streams and ends with one that is all of them. `share` is the run's part of all blocks, `lane`
    the index of its first stream among all streams of all units.

    `entry` is the first heavy submodule inside the run, and the argument that carries the image stream there: what it
    is given is the modulated input. None where the adapter does not describe it, or the block is compiled.
    """

    name: str
    group: str
    members: tuple[nn.Module, ...]
    reads: tuple[tuple[str, ...], ...]
    streams: tuple[str, ...]
    joined: bool
    share: float
    lane: int
    entry: tuple[nn.Module, str] | None = None

    def feature(self, inputs: Feature, outputs: Feature) -> Feature:
        """What is cached of a computation: the residual."""
        return difference(outputs, inputs)

    def base(self, inputs: Feature) -> Feature | None:
        """What a cached feature is added to, to give the output."""
        return inputs

    def select(self, values: tuple[torch.Tensor, ...], position: int) -> Feature:
        """The cached streams among what the member at `position` reads."""
        by_name = dict(zip(self.reads[position], values, strict=True))
        return tuple(by_name[stream] for stream in self.streams)

    def entering(self, values: tuple[torch.Tensor, ...]) -> Feature:
        """The unit's input among what its first member reads."""
        return (torch.cat(values, dim=1),) if self.joined else self.select(values, 0)


@dataclass(frozen=True, eq=False)
class ModuleUnit:
    """Attention, MLP or another part of one block; what is cached is its plain output.

    Fields as in `BlockRun`. A `tokenwise` unit has one member and one stream [B, N, D], and computes every token by
    itself.
    """

    name: str
    group: str
    members: tuple[nn.Module, ...]
    reads: tuple[tuple[str, ...], ...]
    streams: tuple[str, ...]
    share: float
    lane: int
    tokenwise: bool = False

    def feature(self, inputs: Feature, outputs: Feature) -> Feature:
        """What is cached of a computation: the output."""
        return outputs

    def base(self, inputs: Feature) -> Feature | None:
        """A cached feature is the output itself."""
        return None

    def entering(self, values: tuple[torch.Tensor, ...]) -> Feature:
        """The unit's input among what its first member reads."""
        by_name = dict(zip(self.reads[0], values, strict=True))
        return tuple(by_name[stream] for stream in self.streams)


@dataclass(frozen=True, eq=False)
class GuidanceDifference:
    """One branch of guidance, the `follower`, as what the blocks add to it differs from what they add to the other.

    It has no modules: a `GuidanceRunner` makes it of two branches of the stack. `share` is the stack's.
    """

    streams: tuple[str, ...]
    share: float
    lane: int
    follower: Follower
    name: str = GUIDANCE
    group: str = GUIDANCE

    def feature(self, inputs: Feature, outputs: Feature) -> Feature:
        """What is cached: the difference."""
        return outputs

    def base(self, inputs: Feature) -> Feature | None:
        """A cached feature is the output itself."""
        return None


Unit = BlockRun | ModuleUnit | GuidanceDifference
"""A part of the network that is computed or forecast as a whole. A lane is one stream of one unit."""

NetworkUnit = BlockRun | ModuleUnit
"""A unit that consists of modules of the network."""


def network_units(units: tuple[Unit, ...]) -> tuple[NetworkUnit, ...]:
    """The units that consist of modules."""
    return tuple(unit for unit in units if not isinstance(unit, GuidanceDifference))


def guidance_difference(units: tuple[Unit, ...]) -> GuidanceDifference | None:
    """The difference between branches of guidance, where it is a unit."""
    return next((unit for unit in units if isinstance(unit, GuidanceDifference)), None)


def is_tokenwise(unit: Unit) -> bool:
    """Whether single tokens of `unit` can be computed."""
    return isinstance(unit, ModuleUnit) and unit.tokenwise


def image_stream(unit: Unit) -> int:
    """The index of the unit's image stream; joined with the others, if they are."""
    return unit.streams.index(IMAGE_STREAM) if IMAGE_STREAM in unit.streams else 0


def units_of(units: tuple[Unit, ...], denoiser: str) -> tuple[Unit, ...]:
    """The same units, told apart from those of a pipeline's main denoiser by their names: `transformer_2/stack`."""
    if denoiser == MAIN:
        return units
    return tuple(replace(unit, name=f"{denoiser}/{unit.name}") for unit in units)


def block_lists(transformer: nn.Module) -> list[tuple[BlockList, nn.Module]]:
    """Return every block with the list it belongs to, in execution order.

    Raises `PolicyError` when there is no adapter for the transformer, or one that does not fit it.
    """
    adapter = adapter_for(transformer)
    check_described(transformer, adapter)
    return [
        (entry, block)
        for entry in adapter.lists
        for block in transformer.get_submodule(entry.path).children()
    ]


def resolve_units(transformer: nn.Module, units: Units) -> tuple[Unit, ...]:
    """Find the units of `transformer`; raise `PolicyError` when they do not fit the model."""
    adapter = adapter_for(transformer)
    if adapter.skips and not isinstance(units, Stack):
        raise PolicyError(
            f"blocks of {type(transformer).__name__} read what much earlier blocks made, so they can only be cached "
            "all together; use a policy with units `stack`"
        )
    blocks = block_lists(transformer)
    match units:
        case Stack(follower=follower):
            (stack,) = _segments(blocks, adapter, (0,), "stack")
            if follower is None:
                return (stack,)
            return (stack, GuidanceDifference(stack.streams, stack.share, len(stack.streams), follower))
        case Segments():
            return _segments(blocks, adapter, units.resolved(len(blocks)), "segment")
        case Modules():
            return _modules(blocks)
        case _:
            assert_never(units)


def _segments(
    blocks: list[tuple[BlockList, nn.Module]], adapter: Adapter, starts: tuple[int, ...], group: str
) -> tuple[BlockRun, ...]:
    runs: list[BlockRun] = []
    for index, (start, stop) in enumerate(zip(starts, (*starts[1:], len(blocks)), strict=True)):
        name = group if group == "stack" else f"{group}.{index}"
        runs.append(_run(blocks, adapter, start, stop, name, _lanes(runs)))
    return tuple(runs)


def run_unit(transformer: nn.Module, start: int, stop: int) -> BlockRun:
    """Return blocks `start` to `stop` as a unit by themselves."""
    return _run(block_lists(transformer), adapter_for(transformer), start, stop, f"blocks.{start}.{stop}", 0)


def _run(
    blocks: list[tuple[BlockList, nn.Module]], adapter: Adapter, start: int, stop: int, name: str, lane: int
) -> BlockRun:
    run = blocks[start:stop]
    streams = run[-1][0].streams
    return BlockRun(
        name=name,
        group=name,
        members=tuple(block for _, block in run),
        reads=tuple(entry.streams for entry, _ in run),
        streams=tuple(
            s for s in streams if s not in adapter.empty and (stop < len(blocks) or s in adapter.live)
        ),
        joined=streams == JOINED != run[0][0].streams,
        share=len(run) / len(blocks),
        lane=lane,
        entry=_entry(*run[0]),
    )


def _entry(entry: BlockList, block: nn.Module) -> tuple[nn.Module, str] | None:
    if not entry.modules or is_compiled(block):
        return None
    span = entry.modules[0]
    return block.get_submodule(span.start), IMAGE_STREAM if IMAGE_STREAM in span.streams else span.streams[0]


def _modules(blocks: list[tuple[BlockList, nn.Module]]) -> tuple[ModuleUnit, ...]:
    units: list[ModuleUnit] = []
    for index, (entry, block) in enumerate(blocks):
        _check_block(index, entry, block)
        spans = [span for span in entry.modules if _present(block, span)]
        for span in spans:
            units.append(
                ModuleUnit(
                    name=f"{span.group}.{index}",
                    group=span.group,
                    members=tuple(block.get_submodule(path) for path, _ in span.members),
                    reads=tuple(streams for _, streams in span.members),
                    streams=span.streams,
                    share=1 / (len(blocks) * len(spans)),
                    lane=_lanes(units),
                    tokenwise=span.tokenwise,
                )
            )
    if not units:
        raise PolicyError(
            "this model's modules are not described; use a policy with units `stack` or `segment`"
        )
    return tuple(units)


def _check_block(index: int, entry: BlockList, block: nn.Module) -> None:
    if not entry.modules:
        raise PolicyError(
            f"the modules of {type(block).__name__} are not described in runtime/models/spans.py; "
            "use a policy with units `stack` or `segment`"
        )
    if is_compiled(block):
        raise PolicyError(
            f"block {index} is compiled as a whole, so its modules cannot be cached one by one; "
            "use a policy with units `stack` or `segment`, or do not compile the blocks"
        )


def _present(block: nn.Module, span: ModuleSpan) -> bool:
    """Whether the block has the span: the last block of some models lacks a part of what the others have."""
    return not span.optional or getattr(block, span.start, None) is not None


def _lanes(units: list[BlockRun] | list[ModuleUnit]) -> int:
    return units[-1].lane + len(units[-1].streams) if units else 0
