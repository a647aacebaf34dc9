"""The plan of a calibration's memory: what it chooses by, and what `--dry-run` prints."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cachesmith.calibrate.config import CalibrationConfig
from cachesmith.calibrate.cost.plan import BudgetPlan, plan_of
from cachesmith.calibrate.memory.on_meta import pipeline_without_weights
from cachesmith.calibrate.memory.phases import PhaseMemory, phases, placed
from cachesmith.calibrate.memory.placement import USUAL_BATCH, Placement
from cachesmith.calibrate.memory.sizes import Sizes, sizes_of
from cachesmith.calibrate.schedules.search import RunShape, usual_schedule
from cachesmith.policies import Follower
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request, differing_arguments


def usual_masks(config: CalibrationConfig, halves: bool = False) -> list[str]:
    """The usual schedule of every profile; halves: one half of guidance may follow the other."""
    follower: Follower | None = "later" if halves else None
    budgets = {*config.budgets.values()}
    run = RunShape(config.steps, follower)
    return [usual_schedule(budget, run).mask for budget in sorted(budgets)]


def largest_sizes(renderer: Renderer, requests: Sequence[Request]) -> Sizes:
    """Of the request that takes most, where they differ in their size: see `sizes_of`."""
    kinds = dict(zip(differing_arguments(requests), requests, strict=True))
    found = (sizes_of(renderer, request) for request in kinds.values())
    return max(found, key=lambda sizes: sizes.rows * sizes.tokens)


def planned_phases(config: CalibrationConfig, sizes: Sizes, where: Placement) -> tuple[PhaseMemory, ...]:
    """Peak bytes by phase, of the worker that has most samples."""
    return phases(sizes, _share(config), usual_masks(config, sizes.rows > 1), where)


def placement_of(
    config: CalibrationConfig, sizes: Sizes | None, free: int | None, offload: bool = False
) -> Placement:
    """What fits `free` bytes, with what `config` asks for; without sizes or a limit, all is on the device."""
    plan, batch = _share(config), config.batch or USUAL_BATCH
    asked = config.gradient_checkpointing
    wanted = Placement(batch, max(1, min(batch, plan.size)), recomputed=bool(asked), offload=offload)
    if sizes is None or free is None:
        return wanted
    masks = usual_masks(config, sizes.rows > 1)
    return placed(sizes, plan, masks, free, wanted, config.batch or 1, asked is None)


@dataclass(frozen=True)
class MemoryPlan:
    """Peak memory by phase, with what is on the device."""

    where: Placement
    phases: tuple[PhaseMemory, ...]

    def lines(self) -> list[str]:
        """One line a phase."""
        where = f"{self.where}; {self.where.resting}"
        lines = [f"{'memory at most':<16}{'device GiB':>12}{'host GiB':>12}   with {where}"]
        for phase in self.phases:
            lines.append(f"{phase.name:<16}{phase.device / 2**30:>12.2f}{phase.host / 2**30:>12.2f}")
        return lines


def memory_plan(
    folder: Path,
    config: CalibrationConfig,
    requests: Sequence[Request],
    dtype: str,
    free: int | None = None,
    offload: bool = False,
) -> MemoryPlan | None:
    """Peak memory by phase, where a local model's files tell how a step is computed; else None.

    free: bytes of the device that may be filled, None without a limit.
    """
    if config.space == "rfc" or not folder.is_dir():
        return None
    try:
        pipe = pipeline_without_weights(folder, getattr(torch, dtype))
        pipe.set_progress_bar_config(disable=True)
        sizes = largest_sizes(Renderer(pipe, 2, 1, **config.common), requests)
    except Exception:  # whatever a foreign folder makes its classes raise
        return None
    where = placement_of(config, sizes, free, offload)
    return MemoryPlan(where, planned_phases(config, sizes, where))


def _share(config: CalibrationConfig) -> BudgetPlan:
    """The plan of the worker that has most samples."""
    plan = plan_of(config)
    return replace(plan, samples=-(-plan.samples // config.workers), size=-(-plan.size // config.workers))
