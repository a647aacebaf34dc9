"""Which schedule a profile has: an Optuna study over shapes, judged by closed-loop fits of a few samples.

A shape's score is the out-of-fold PSNR of one pass of least squares: where its weights can bring it, at the cost of a
few cached runs, and no sample is set aside for it. How far apart computed steps get and, where one half of guidance can
follow the other, how many are computed by half, is drawn; the first trials are shapes that did well elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import optuna

from cachesmith.calibrate.closed_loop.lanes import Schedule
from cachesmith.calibrate.studies import run_trials
from cachesmith.policies import Follower
from cachesmith.policies.schedule import by_halves, spaced

POWERS = (1.3, 1.5, 1.0)
"""Spacings that are tried first where few steps are computed, see `spaced`. Even steps (1) suit samplers whose own
noise levels are dense where steps matter."""

MANY_POWERS = (1.5, 1.3, 1.0)
"""The same where at least `MANY` of all steps are."""

MANY = 0.18

TYPICAL = 1.4
"""Spacing that stands for all where no schedule is searched for."""

SHARES = (0.15, 0.85)
"""Of the computations that are left, a denoiser before the last one takes no smaller and no larger part."""

LEADS = (4 / 3, 1.0)
"""Computed steps of the followed half in full computations; 1 has no step by half."""

Score = Callable[[Schedule], float]


@dataclass(frozen=True)
class RunShape:
    """What a schedule is for: a run of `steps`, the half of guidance that can follow the other, and the steps at which
    a denoiser takes over (`Schedule.starts`)."""

    steps: int
    follower: Follower | None = None
    starts: tuple[int, ...] = (0,)

    @property
    def lengths(self) -> list[int]:
        """How many steps each denoiser has."""
        return [stop - start for start, stop in pairwise((*self.starts, self.steps))]


def search_shapes(
    study: optuna.Study, budget: float, run: RunShape, trials: int, seed: int, score: Score
) -> Schedule:
    """Run trials until the study has `trials` finished ones; return the best schedule of `budget` computations."""

    def objective(trial: optuna.Trial) -> float:
        return score(schedule_of(trial, budget, run))

    run_trials(study, objective, trials, seed, _first_points(budget, run))
    return schedule_of(optuna.trial.FixedTrial(study.best_params), budget, run)


def _first_points(budget: float, run: RunShape) -> list[dict[str, Any]]:
    """Shapes that are tried first: every denoiser has computations as it has steps."""
    shares = {
        f"share-{i}": _bounded(length / sum(run.lengths[i:])) for i, length in enumerate(run.lengths[:-1])
    }
    if not _has_halves(budget, run):
        powers = POWERS if budget < MANY * run.steps else MANY_POWERS
        return [{"power": power, **shares} for power in powers]
    pairs = ((1.15, LEADS[0]), (1.0, LEADS[1]), (1.4, LEADS[1]))
    return [{"power": power, "lead": lead, **shares} for power, lead in pairs]


def usual_schedule(budget: float, run: RunShape) -> Schedule:
    """The shape that is tried first; others have to be better by more than chance."""
    return schedule_of(optuna.trial.FixedTrial(_first_points(budget, run)[0]), budget, run)


def typical_schedule(budget: int, run: RunShape) -> Schedule:
    """The shape that stands for all where none is searched for."""
    point = {**_first_points(budget, run)[0], "power": TYPICAL}
    return schedule_of(optuna.trial.FixedTrial(point), budget, run)


def schedule_of(trial: Any, budget: float, run: RunShape) -> Schedule:
    """The schedule of a trial's parameters: every denoiser's first steps are as dense as the run's."""
    power = trial.suggest_float("power", 1.0, 1.6)
    lead = trial.suggest_float("lead", 1.0, 1.7) if _has_halves(budget, run) else None
    letters, left = "-" * run.starts[0], budget
    for i, length in enumerate(run.lengths):
        own, others = left, len(run.lengths) - i - 1
        if others:
            share = trial.suggest_float(f"share-{i}", *SHARES)
            own = min(
                max(round(left * share) if lead is None else round(2 * left * share) / 2, 1), left - others
            )
        own, left = min(own, length), left - own
        letters += spaced(int(own), length, power) if lead is None else by_halves(own, length, power, lead)
    return Schedule(letters, run.follower if "H" in letters else None, run.starts)


def _has_halves(budget: float, run: RunShape) -> bool:
    """Whether there are enough computations for some by half."""
    return run.follower is not None and budget >= 3 * len(run.lengths)


def _bounded(share: float) -> float:
    return min(max(share, SHARES[0]), SHARES[1])
