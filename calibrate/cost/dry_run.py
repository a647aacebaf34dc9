"""What a calibration will do, told without loading weights."""

from dataclasses import asdict, replace
from typing import Any

from torch import nn

from cachesmith.calibrate.closed_loop.axes import AXES
from cachesmith.calibrate.closed_loop.fit import FOLDS
from cachesmith.calibrate.config import CalibrationConfig
from cachesmith.calibrate.cost.ledger import seconds_per_run
from cachesmith.calibrate.cost.plan import BudgetPlan, longest_share, plan_of
from cachesmith.calibrate.memory.plan import MemoryPlan


def describe_plan(
    transformer: nn.Module | None, config: CalibrationConfig, memory: MemoryPlan | None = None
) -> str:
    """The plan as text: phases, run equivalents, memory as far as the transformer, which needs no weights, tells it.

    memory: what tells more of it.
    """
    plan = plan_of(config)
    lines = [f"{'phase':<16}{'samples':>8}{'forwards':>10}{'backwards':>10}{'run equivalents':>17}"]
    for phase in plan.phases:
        runs = (phase.forwards + phase.backwards) / plan.steps
        lines.append(
            f"{phase.name:<16}{phase.samples:>8}{phase.forwards:>10.0f}{phase.backwards:>10.0f}{runs:>17.1f}"
        )
    lines.append(f"{'all':<44}{plan.runs:>17.1f}")
    lines.append(
        f"then {_measuring(config, plan):.0f} run equivalents to measure {config.heldout} held-out samples"
    )
    told = [] if memory is None else memory.lines()
    shared, whole = _shared(config, plan), _memory(transformer, config)[: 1 if told else None]
    lines += [*shared, *whole, *told, _more(config, plan)]
    return "\n".join(lines)


def plan_as_json(config: CalibrationConfig, memory: MemoryPlan | None = None) -> dict[str, Any]:
    """The plan as numbers: forwards and backwards of one sample and step, bytes of memory by phase."""
    plan = plan_of(config)
    return {
        "samples": plan.samples,
        "phases": [asdict(phase) for phase in plan.phases],
        "run_equivalents": plan.runs,
        "heldout_samples": config.heldout,
        "heldout_run_equivalents": _measuring(config, plan),
        "memory": None if memory is None else [asdict(phase) for phase in memory.phases],
    }


def _measuring(config: CalibrationConfig, plan: BudgetPlan) -> float:
    """Run equivalents of the held-out samples, uncached and by every profile."""
    return config.heldout * (1 + sum({*config.budgets.values()}) / plan.steps)


def _shared(config: CalibrationConfig, plan: BudgetPlan) -> list[str]:
    """What several workers take; seconds where a calibration of this work folder has been timed."""
    if config.workers == 1:
        return []
    share, each = longest_share(plan, config.workers), seconds_per_run(config.work, config.steps)
    timed = "seconds are known once it has run for a while in this work folder"
    if each is not None:
        timed = f"{share * each:.0f} seconds at {each:.2f} a run equivalent, as timed in {config.work}"
    return [f"{config.workers} workers take as long as one with {share:.1f} run equivalents: {timed}"]


def _more(config: CalibrationConfig, plan: BudgetPlan) -> str:
    """What twice the budget buys."""
    if config.space == "rfc":
        return "more budget buys more trials"
    twice = plan_of(replace(config, budget=2 * config.budget))
    return (
        f"twice the budget buys {twice.samples} samples instead of {plan.samples}, {twice.shapes} schedules to choose "
        f"from instead of {plan.shapes}, and {twice.iterations} gradients instead of {plan.iterations}"
    )


def _memory(transformer: nn.Module | None, config: CalibrationConfig) -> list[str]:
    if transformer is None:
        return ["the transformer's size is not known before it is loaded"]
    parameters = sum(parameter.numel() for parameter in transformer.parameters())
    lines = [
        f"transformer: {parameters / 1e6:.0f} M parameters, {2 * parameters / 2**30:.2f} GiB in bfloat16"
    ]
    channels = getattr(transformer, "inner_dim", None)
    if channels is None or config.space == "rfc":
        return lines
    equations = 4 * (AXES * channels) ** 2
    segments = max(config.budgets.values())
    curvatures = (
        f", and {segments:g} curvatures of {equations / 2**30:.2f} GiB for the gradients"
        if plan_of(config).iterations
        else ""
    )
    lines.append(f"least squares: {(FOLDS + 3) * equations / 2**30:.2f} GiB for a segment{curvatures}")
    return lines
