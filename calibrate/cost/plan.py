"""What a budget of run equivalents is spent on. Arithmetic alone: nothing is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from cachesmith.calibrate.config import CalibrationConfig

_CHUNK = 8
"""Samples come in multiples of this; also those of one gradient."""

SHAPES = 2
"""Schedules compared at least, for the first profile: for others, what was best for the one before, and the usual."""

PER_ROOT = 4.0
"""Fitting samples per square root of run equivalents a profile: 40 for 100."""

SHARE = 0.25
"""Of the budget, what least squares of more schedules than these may take."""

MOST_SHAPES = 12

_MOST = 16
"""Samples of trials of scales and thresholds, at most."""

_RECORDED = 4
"""Samples whose modules' scales are recorded."""

ITERATIONS = 200
"""More do not help weights that are fitted on a plan's samples."""

WORTHWHILE = 8
"""Fewer iterations do nothing that more samples do not do as well: what they would take is spent on samples."""


@dataclass(frozen=True)
class PhasePlan:
    """One phase: samples, and forwards and backwards of the denoiser, each for one sample and step."""

    name: str
    samples: int
    forwards: float
    backwards: float = 0.0


@dataclass(frozen=True)
class BudgetPlan:
    """samples: fitted on; nudged: those in which it is measured how errors grow; shapes: schedules of the profile that
    computes least; iterations: gradients per profile, of `size` samples."""

    steps: int
    samples: int
    nudged: int
    shapes: int
    iterations: int
    size: int
    phases: tuple[PhasePlan, ...]

    @property
    def more_shapes(self) -> int:
        """Schedules of each profile but the one that computes least."""
        return _more(self.shapes)

    @property
    def runs(self) -> float:
        """Run equivalents in all."""
        return sum(phase.forwards + phase.backwards for phase in self.phases) / self.steps

    def lines(self) -> tuple[str, ...]:
        """One line a phase, for the policy's record: what was planned, since what it took in the end depends on
        interruptions, and the policy does not."""
        return tuple(
            f"cost/{phase.name}: {(phase.forwards + phase.backwards) / self.steps:.1f} run equivalents planned "
            f"({phase.forwards:.0f} forwards, {phase.backwards:.0f} backwards)"
            for phase in self.phases
        )


def longest_share(plan: BudgetPlan, workers: int) -> float:
    """Run equivalents of the worker that has most to compute: what `workers` workers take as long as.

    Samples are shared out as evenly as whole ones can be.
    """
    return sum(
        (phase.forwards + phase.backwards) / plan.steps * -(-phase.samples // workers) / phase.samples
        for phase in plan.phases
    )


def plan_of(config: CalibrationConfig) -> BudgetPlan:
    """What a calibration's budget is spent on."""
    if config.space == "rfc":
        return make_rfc_plan(config.steps, config.budget, config.trials, config.fitting)
    computed = dict.fromkeys(config.budgets.values())
    if config.min_psnr is not None:
        computed |= {config.steps / 4: None}
    return make_plan(
        config.steps,
        [*computed],
        config.budget,
        recomputed=bool(config.gradient_checkpointing),
        samples=config.fitting,
    )


def make_plan(
    steps: int,
    computations: Sequence[float],
    budget: float,
    *,
    recomputed: bool = False,
    samples: int | None = None,
) -> BudgetPlan:
    """Divide `budget` run equivalents among references, schedules, least squares and gradients.

    computations: full computations of each profile; recomputed: blocks are computed twice for their gradients.
    """
    plan = _divided(steps, computations, budget, samples or _suited(steps, computations, budget), recomputed)
    if samples is None and 0 < plan.iterations < WORTHWHILE:
        return _divided(steps, computations, budget, _most(steps, computations, budget), recomputed, 0)
    return plan


def _divided(
    steps: int,
    computations: Sequence[float],
    budget: float,
    count: int,
    recomputed: bool,
    most_iterations: int = ITERATIONS,
) -> BudgetPlan:
    """The plan with `count` samples."""
    nudged, size, shapes = min(_CHUNK, count), min(_CHUNK, count), SHAPES
    while shapes < MOST_SHAPES and count * _compared(computations, shapes + 1) <= SHARE * budget * steps:
        shapes += 1
    fitting = count * _compared(computations, shapes)
    gradient = sum(_gradient(n, recomputed) for n in computations) * size / steps
    left = budget - count - nudged - fitting / steps
    iterations = max(0, min(most_iterations, int(left / gradient)))
    phases = [PhasePlan("references", count, count * steps)]
    phases.append(PhasePlan("schedules", nudged, nudged * steps))
    phases.append(PhasePlan("least squares", count, fitting))
    if iterations:
        forwards = sum(n + (n - 1 if recomputed else 0) for n in computations) * size * iterations
        phases.append(
            PhasePlan("gradients", size, forwards, sum(n - 1 for n in computations) * size * iterations)
        )
    return BudgetPlan(steps, count, nudged, shapes, iterations, size, tuple(phases))


def _more(shapes: int) -> int:
    return max(2, shapes // 3)


def _suited(steps: int, computations: Sequence[float], budget: float) -> int:
    """Samples to fit on that suit the budget: fewer where references and fits alone exceed it."""
    count = _rounded(PER_ROOT * sqrt(budget / len(computations)))
    return min(count, _most(steps, computations, budget))


def _most(steps: int, computations: Sequence[float], budget: float) -> int:
    """Samples to fit on where no gradients are taken."""
    each = 1 + _compared(computations, SHAPES) / steps
    return max(_CHUNK, int((budget - _CHUNK) / each) // _CHUNK * _CHUNK)


def _compared(computations: Sequence[float], shapes: int) -> float:
    """Forwards of a sample in least squares of all schedules that are compared."""
    least = min(computations)
    return shapes * least + _more(shapes) * (sum(computations) - least)


def make_rfc_plan(steps: int, budget: float, trials: int, samples: int | None = None) -> BudgetPlan:
    """Divide `budget` among references, a recording of single modules, and trials of at most half of all steps."""
    count = samples or max(4, min(_MOST, 4 * round(budget / 24)))
    recorded = min(count, _RECORDED)
    each = count / 4  # run equivalents of a trial that computes a quarter of the steps
    shapes = max(1, min(trials, int((budget - count - recorded) / each)))
    phases = (
        PhasePlan("references", count, count * steps),
        PhasePlan("recording", recorded, recorded * steps),
        PhasePlan("trials", count, shapes * each * steps),
    )
    return BudgetPlan(steps, count, count, shapes, 0, 0, phases)


def _gradient(computations: float, recomputed: bool) -> float:
    """Forwards and backwards of one sample's gradient: the first computed step needs none."""
    return computations + (computations - 1) * (2 if recomputed else 1)


def _rounded(count: float) -> int:
    return max(_CHUNK, _CHUNK * round(count / _CHUNK))
