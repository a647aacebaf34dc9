"""What a budget of run equivalents is spent on. Arithmetic alone: nothing is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from cachesmith.calibrate.config import CalibrationConfig

_CHUNK = 8
"""Samples come in multiples of this; also those of one gradient."""

SCREENED = 16
"""Samples at most that schedules are compared on."""

SHAPES = 4
"""Schedules compared at least, for the first profile: for others, what was best for the one before, and the usual."""

PER_ROOT = 4.0
"""Fitting samples per square root of run equivalents a profile: 40 for 100."""

SCREEN = 0.15
"""Share of the budget that comparisons of schedules may take."""

MOST_SHAPES = 12

_RECORDED = 4
"""Samples whose modules' scales are recorded."""

ITERATIONS = 200
"""More do not help weights that are fitted on a plan's samples."""


@dataclass(frozen=True)
class PhasePlan:
    """One phase: samples, and forwards and backwards of the denoiser, each for one sample and step."""

    name: str
    samples: int
    forwards: float
    backwards: float = 0.0


@dataclass(frozen=True)
class BudgetPlan:
    """samples: fitted on; screened: those that schedules are compared on; shapes: schedules of the profile that
    computes least; iterations: gradients per profile, of `size` samples."""

    steps: int
    samples: int
    screened: int
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
    profiles, per_run = len(computations), sum(computations) / steps
    count = samples or _rounded(PER_ROOT * sqrt(budget / profiles))
    fixed = count * (1 + per_run)
    screened = min(count, SCREENED)
    while screened > 4 and _screening(computations, SHAPES) * screened > SCREEN * budget * steps:
        screened -= 4
    shapes = SHAPES
    while shapes < MOST_SHAPES and _screening(computations, shapes + 1) * screened <= SCREEN * budget * steps:
        shapes += 1
    size = min(_CHUNK, count)
    gradient = sum(_gradient(n, recomputed) for n in computations) * size / steps
    screening = screened * _screening(computations, shapes)
    left = budget - fixed - screening / steps
    iterations = max(0, min(ITERATIONS, int(left / gradient)))
    phases = [PhasePlan("references", count, count * steps)]
    phases.append(PhasePlan("schedules", screened, screening))
    phases.append(PhasePlan("least squares", count, count * sum(computations)))
    if iterations:
        forwards = sum(n + (n - 1 if recomputed else 0) for n in computations) * size * iterations
        phases.append(
            PhasePlan("gradients", size, forwards, sum(n - 1 for n in computations) * size * iterations)
        )
    return BudgetPlan(steps, count, screened, shapes, iterations, size, tuple(phases))


def _more(shapes: int) -> int:
    return max(2, shapes // 3)


def _screening(computations: Sequence[float], shapes: int) -> float:
    """Forwards of a sample in comparisons of schedules."""
    least = min(computations)
    return shapes * least + _more(shapes) * (sum(computations) - least)


def make_rfc_plan(steps: int, budget: float, trials: int, samples: int | None = None) -> BudgetPlan:
    """Divide `budget` among references, a recording of single modules, and trials of at most half of all steps."""
    count = samples or max(4, min(SCREENED, 4 * round(budget / 24)))
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
