"""From a policy to the parts of the network that become engines."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from cachesmith.policies import MAIN, EngineError, Modules, Policy, Segments
from cachesmith.runtime import resolve_units
from cachesmith.runtime.models.adapters import adapter_for
from cachesmith.runtime.models.units import NetworkUnit, block_lists, network_units, run_unit

LAUNCH_MICROSECONDS = 30
"""Assumed cost of one more engine: binding its tensors, and the fusion lost at its border."""


@dataclass(frozen=True)
class Part:
    """Blocks `start` to `stop` of a denoiser, or with `module` one submodule of the first. `weights` are its bytes."""

    start: int
    stop: int
    weights: int
    module: str | None = None
    denoiser: str = MAIN

    @property
    def name(self) -> str:
        """Name in the manifest and in file names."""
        of = "" if self.denoiser == MAIN else f"{self.denoiser}."
        if self.module is not None:
            return f"{of}block-{self.start:03d}-{self.module}"
        return f"{of}blocks-{self.start:03d}-{self.stop:03d}"


def plan_parts(
    policy: Policy,
    transformer: nn.Module,
    *,
    profiles: tuple[str, ...] = (),
    segments: int | None = None,
    blockwise: bool = False,
    limit: float = float("inf"),
) -> tuple[Part, ...]:
    """Cut the transformer at the borders of the policy's units and where the architecture changes.

    Runs heavier than `limit` bytes are cut further, the builder needs several times a part's weights; `segments` asks
    for a number of runs. Raises `EngineError` where that cannot be, or for module units without `blockwise`.
    """
    _refuse_work(transformer)
    units = [policy.profile(name).units for name in profiles or policy.document.profiles]
    modules = [u for u in units if isinstance(u, Modules)]
    sizes = [_bytes(block) for _, block in block_lists(transformer)]
    if modules and not blockwise:
        _refuse_modules(policy, transformer, len(sizes))
    parts = _module_parts(transformer) if modules else ()
    if len(modules) == len(units):
        return parts
    borders = {0, len(sizes), *natural_borders(transformer)}
    borders |= {start for u in units if isinstance(u, Segments) for start in u.resolved(len(sizes))}
    runs = _cut(sorted(b for b in borders if b <= len(sizes)), sizes, segments, limit)
    return (*(Part(a, b, sum(sizes[a:b])) for a, b in runs), *parts)


def natural_borders(transformer: nn.Module) -> tuple[int, ...]:
    """Block indices at which another list of blocks begins, such as double to single."""
    lists = [entry.path for entry, _ in block_lists(transformer)]
    return tuple(i for i, (a, b) in enumerate(pairwise(lists), start=1) if a != b)


def part_unit(transformer: nn.Module, part: Part) -> NetworkUnit:
    """Return the part as a unit of the runtime, so that calls of it can be watched."""
    if part.module is not None:
        block = _blocks(transformer)[part.start]
        units = network_units(resolve_units(transformer, Modules()))
        return next(u for u in units if u.members[0] is block.get_submodule(part.module))
    return run_unit(transformer, part.start, part.stop)


def part_streams(
    transformer: nn.Module, part: Part
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the names of a part's streams, of what its members return, and of what is read of that."""
    unit = part_unit(transformer, part)
    if part.module is not None:
        return unit.streams, unit.streams, unit.streams
    adapter, blocks = adapter_for(transformer), block_lists(transformer)
    lists = {entry.streams for entry, _ in blocks[part.start : part.stop]}
    if len(lists) > 1:
        raise EngineError(f"{part.name} crosses from one list of blocks to another; export a part for each")
    (returns,) = lists
    streams = tuple(name for name in returns if name not in adapter.empty)
    return streams, returns, tuple(s for s in streams if part.stop < len(blocks) or s in adapter.live)


def describe_parts(parts: tuple[Part, ...]) -> str:
    """Say how many engines there are, how heavy, and what their number costs."""
    heaviest = max(part.weights for part in parts) / 2**20
    overhead = len(parts) * LAUNCH_MICROSECONDS / 1000
    return f"{len(parts)} engines, up to {heaviest:.1f} MiB of weights, about {overhead:.2f} ms of launches a step"


def _cut(borders: list[int], sizes: list[int], segments: int | None, limit: float) -> list[tuple[int, int]]:
    """Fewest runs under `limit` bytes; with `segments`, halve the heaviest run until there are so many."""
    runs = list(pairwise(borders))
    if segments is None:
        return [part for run in runs for part in _packed(*run, sizes, limit)]
    if not len(runs) <= segments <= len(sizes):
        raise EngineError(
            f"--segments {segments} is not possible: the policy's units need at least {len(runs)} and there are "
            f"{len(sizes)} blocks"
        )
    while len(runs) < segments:
        divisible = [r for r in runs if r[1] - r[0] > 1]
        heavy = max(divisible, key=lambda r: (sum(sizes[r[0] : r[1]]), -r[0]))
        at, middle = runs.index(heavy), (heavy[0] + heavy[1] + 1) // 2
        runs[at : at + 1] = [(heavy[0], middle), (middle, heavy[1])]
    return runs


def _packed(start: int, stop: int, sizes: list[int], limit: float) -> list[tuple[int, int]]:
    """Every run as long as the limit allows, which makes them the fewest. A block that is heavier is one by itself."""
    runs, begun = [], start
    for block in range(start + 1, stop):
        if sum(sizes[begun : block + 1]) > limit:
            runs.append((begun, block))
            begun = block
    return [*runs, (begun, stop)]


def _module_parts(transformer: nn.Module) -> tuple[Part, ...]:
    """One part for every cached submodule that is called as one; spans of several stay in torch."""
    found: list[Part] = []
    for index, (entry, block) in enumerate(block_lists(transformer)):
        for span in entry.modules:
            if len(span.members) == 1 and getattr(block, span.start, None) is not None:
                found.append(Part(index, index + 1, _bytes(block.get_submodule(span.start)), span.start))
    if not found:
        raise EngineError(
            "none of the cached modules is called as one, so none can be exported; calibrate segments"
        )
    return tuple(found)


def _refuse_work(transformer: nn.Module) -> None:
    """What happens between blocks is in none of them, and engines would leave it out."""
    adapter, name = adapter_for(transformer), type(transformer).__name__
    if adapter.works:
        raise EngineError(
            f"{name} does something between its blocks, which engines would leave out; run it in torch"
        )
    if adapter.skips:
        raise EngineError(
            f"blocks of {name} read what much earlier blocks made, which no engine is given; run it in torch"
        )


def _refuse_modules(policy: Policy, transformer: nn.Module, blocks: int) -> None:
    count = len(resolve_units(transformer, Modules()))
    raise EngineError(
        f"policy {policy.document.name!r} caches the {count} modules of {blocks} blocks one by one, and engines cannot "
        "be skipped inside: calibrate with units `stack` or `segment`, choose another --profile, or pass --blockwise "
        f"for up to {count} small engines (about {count * LAUNCH_MICROSECONDS / 1000:.1f} ms of launches a step, no "
        "fusion across them, norms and gates in torch)"
    )


def _blocks(transformer: nn.Module) -> list[nn.Module]:
    return [block for _, block in block_lists(transformer)]


def _bytes(module: nn.Module) -> int:
    tensors: Iterable[nn.Parameter] = module.parameters()
    return sum(t.numel() * t.element_size() for t in tensors)
