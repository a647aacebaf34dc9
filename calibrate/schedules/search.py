"""Which schedule a profile has: an Optuna study of shapes, judged by closed-loop fits.

A shape's score is what least squares reach on the samples that they are fitted on: all shapes are flattered alike. All
samples are fitted for it, as a few of them favour other shapes. A shape is the optimum of what segments cost (uncached
paths say how far each of them is off where it ends, nudged runs how much of that is left when the run ends), tilted
towards a run's start or end; or steps that get ever further apart; and where one half of guidance can follow the other,
how many are computed by half.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import optuna
from torch import Tensor

from cachesmith.calibrate.closed_loop.lanes import Schedule
from cachesmith.calibrate.fit.scales import plan_schedules
from cachesmith.calibrate.schedules.path_costs import tilted
from cachesmith.calibrate.studies import run_trials
from cachesmith.policies import Follower
from cachesmith.policies.schedule import spaced, with_halves

ShapeParameters = dict[str, Any]
"""Parameters of a trial."""

FEW, MOST = 1.3, 1.5
"""Power of the usual spacing, see `spaced`: where less than `MANY` of all steps are computed, and from there on."""

MANY = 0.18

TILTS = (-3.0, 3.0)

FIRST_TILTS = (0.0, -1.5, 1.5)
"""Tried first."""

SHARES = (0.15, 0.85)
"""Of the computations that are left, a part of the run before the last one takes no smaller and no larger share."""

LEAD = 4 / 3
"""Computed steps of the followed half in full computations, usually; 1 has no step by half."""

Score = Callable[[Schedule], float]


@dataclass(frozen=True)
class RunShape:
    """What a schedule is for: a run of `steps`, the half of guidance that can follow the other, and the steps at which
    parts of the run begin (`Schedule.starts`). costs: of segments, see `path_costs`; None where paths do not tell."""

    steps: int
    follower: Follower | None = None
    starts: tuple[int, ...] = (0,)
    costs: Tensor | None = None

    @property
    def lengths(self) -> list[int]:
        """How many steps each part has."""
        return [stop - start for start, stop in pairwise((*self.starts, self.steps))]


def search_shapes(
    study: optuna.Study,
    budget: float,
    run: RunShape,
    trials: int,
    seed: int,
    score: Score,
    cheaper: ShapeParameters | None = None,
) -> ShapeParameters:
    """Run trials until the study has `trials` finished ones; return the best shape for `budget` computations.

    cheaper: the shape of a profile that computes less, which is tried first.
    """

    def objective(trial: optuna.Trial) -> float:
        return score(schedule_of(trial, budget, run))

    first = first_shapes(budget, run, cheaper)
    if cheaper is not None:
        first = [{**first[0], **cheaper}, *first]
    distinct: dict[Schedule, ShapeParameters] = {}
    for shape in first:
        distinct.setdefault(shaped(shape, budget, run), shape)
    run_trials(study, objective, trials, seed, [*distinct.values()])
    return dict(study.best_params)


def first_shapes(
    budget: float, run: RunShape, cheaper: ShapeParameters | None = None
) -> list[ShapeParameters]:
    """Shapes that are tried first. Before all the usual one, which those of the other kind have to beat by more than
    chance: along the paths where `cheaper` is, or else one in which parts of a run have computations as they have
    steps."""
    by_half = _has_halves(budget, run)
    usual = 1.15 if by_half else FEW if budget < MANY * run.steps else MOST
    paths = [] if run.costs is None else [_along_paths(tilt) for tilt in FIRST_TILTS]
    powers = [{**_powered(usual, run), "lead": LEAD}, {**_powered(1.0, run), "lead": 1.0}]
    points = [*paths, *powers] if is_along_paths(cheaper) else [powers[0], *paths, powers[1]]
    return [{name: value for name, value in p.items() if by_half or name != "lead"} for p in points]


def _along_paths(tilt: float) -> ShapeParameters:
    return {"spacing": "path", "tilt": tilt, "lead": 1.0}


def is_along_paths(shape: ShapeParameters | None) -> bool:
    """Whether it is an optimum of what segments cost."""
    return shape is not None and shape.get("spacing") == "path"


def _powered(power: float, run: RunShape) -> ShapeParameters:
    spacing = {} if run.costs is None else {"spacing": "power"}
    shares = {
        f"share-{i}": _bounded(length / sum(run.lengths[i:])) for i, length in enumerate(run.lengths[:-1])
    }
    return {**spacing, "power": power, **shares}


def usual_schedule(budget: float, run: RunShape) -> Schedule:
    """That of the usual shape."""
    return shaped(first_shapes(budget, run)[0], budget, run)


def typical_schedule(budget: int, run: RunShape) -> Schedule:
    """The shape that stands for all where none is searched for."""
    if run.costs is None:
        return usual_schedule(budget, run)
    return shaped(_along_paths(0.0), budget, run)


def shaped(point: ShapeParameters, budget: float, run: RunShape) -> Schedule:
    """The schedule of a shape."""
    return schedule_of(optuna.trial.FixedTrial(point), budget, run)


def schedule_of(trial: Any, budget: float, run: RunShape) -> Schedule:
    """The schedule of a trial's parameters."""
    by_half = _has_halves(budget, run)
    lead = trial.suggest_float("lead", 1.0, 1.7) if by_half else 1.0
    count = min(sum(run.lengths), round(budget * lead) if by_half else int(budget))
    if run.costs is not None and trial.suggest_categorical("spacing", ("power", "path")) == "path":
        letters = _planned(count, trial.suggest_float("tilt", *TILTS), run)
    else:
        letters = _spaced(count, trial, run)
    if by_half:
        letters = with_halves(letters, budget, run.starts)
    return Schedule(letters, run.follower if "H" in letters else None, run.starts)


def _planned(count: int, tilt: float, run: RunShape) -> str:
    """The `count` steps of which paths say that a run ends closest: they share out the parts' computations, too."""
    assert run.costs is not None, "asked for where paths tell"
    first = run.starts[0]
    starts = [start - first for start in run.starts]
    cost = tilted(run.costs[first:, first:, first:], tilt, starts)
    return "-" * first + plan_schedules(cost, [count])[count]


def _spaced(count: int, trial: Any, run: RunShape) -> str:
    """Steps that get ever further apart: every part's first ones are as dense as the run's."""
    power = trial.suggest_float("power", 1.0, 1.6)
    letters, left = "-" * run.starts[0], count
    for i, length in enumerate(run.lengths):
        own, others = left, len(run.lengths) - i - 1
        if others:
            share = trial.suggest_float(f"share-{i}", *SHARES)
            own = min(max(round(left * share), 1, left - sum(run.lengths[i + 1 :])), left - others)
        own = min(own, length)
        left -= own
        letters += spaced(own, length, power)
    return letters


def _has_halves(budget: float, run: RunShape) -> bool:
    """Whether there are enough computations for some by half."""
    return run.follower is not None and budget >= 3 * len(run.lengths)


def _bounded(share: float) -> float:
    return min(max(share, SHARES[0]), SHARES[1])
