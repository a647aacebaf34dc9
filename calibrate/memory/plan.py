"""The plan of a calibration's memory: what `--dry-run` prints."""

from pathlib import Path

import torch

from cachesmith.calibrate.config import CalibrationConfig
from cachesmith.calibrate.cost.plan import BudgetPlan, plan_of
from cachesmith.calibrate.memory.on_meta import pipeline_without_weights
from cachesmith.calibrate.memory.phases import Placement, phases
from cachesmith.calibrate.memory.sizes import Sizes, sizes_of
from cachesmith.calibrate.shapes import RunShape, usual_schedule
from cachesmith.policies import Follower
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request


def usual_masks(config: CalibrationConfig, halves: bool = False) -> list[str]:
    """The usual schedule of every profile; halves: one half of guidance may follow the other."""
    follower: Follower | None = "later" if halves else None
    budgets = {*config.budgets.values()}
    run = RunShape(config.steps, follower)
    return [usual_schedule(budget, run).mask for budget in sorted(budgets)]


def memory_table(sizes: Sizes, plan: BudgetPlan, masks: list[str], where: Placement) -> list[str]:
    """One line a phase."""
    lines = [f"{'memory at most':<16}{'device GiB':>12}{'host GiB':>12}   with {where}"]
    for phase in phases(sizes, plan, masks, where):
        lines.append(f"{phase.name:<16}{phase.device / 2**30:>12.2f}{phase.host / 2**30:>12.2f}")
    return lines


def memory_lines(folder: Path, config: CalibrationConfig, request: Request, dtype: str) -> list[str]:
    """Peak memory by phase, where a local model's files tell how a step of `request` is computed; else nothing."""
    plan = plan_of(config)
    if config.space == "rfc" or not folder.is_dir():
        return []
    try:
        pipe = pipeline_without_weights(folder, getattr(torch, dtype))
        pipe.set_progress_bar_config(disable=True)
        sizes = sizes_of(Renderer(pipe, 2, 1, **config.common), request)
    except Exception:  # whatever a foreign folder makes its classes raise
        return []
    where = Placement(config.batch, min(config.batch, plan.size), recomputed=config.gradient_checkpointing)
    return memory_table(sizes, plan, usual_masks(config, sizes.rows > 1), where)
