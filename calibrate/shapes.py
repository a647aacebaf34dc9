"""Which schedule a profile has: an Optuna study over shapes, judged by closed-loop fits of a few samples.

A shape's score is the out-of-fold PSNR of one pass of least squares: where its weights can bring it, at the cost of a
few cached runs, and no sample is set aside for it. How far apart computed steps get and, where one half of guidance can
follow the other, how many are computed by half, is drawn; the first trials are shapes that did well elsewhere.
"""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import TrialState

from cachesmith.calibrate.closed_loop.lanes import Schedule
from cachesmith.calibrate.schedules import by_halves, spaced
from cachesmith.files import drop_torn_lines
from cachesmith.policies import Follower
from cachesmith.sampling.requests import derived_seed

POWERS = (1.3, 1.5, 1.15)
"""Spacings that are tried first where few steps are computed, see `spaced`."""

MANY_POWERS = (1.5, 1.3, 1.4)
"""The same where at least `MANY` of all steps are."""

MANY = 0.18

LEADS = (4 / 3, 1.0)
"""Computed steps of the followed half in full computations; 1 has no step by half."""

Score = Callable[[Schedule], float]


def open_study(storage: str | None, folder: Any, name: str, directions: list[str]) -> optuna.Study:
    """Open or resume a study: in `storage` (an Optuna URL), or in a journal file in the work folder."""
    optuna.logging.set_verbosity(logging.ERROR)  # an interrupted trial is not worth a traceback
    where: Any = storage
    if storage is None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.journal"
        drop_torn_lines(path)
        # a calibration holds its work folder, so a lock that is there was left by one that was killed
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
        backend = optuna.storages.journal.JournalFileBackend(str(path))
        where = optuna.storages.JournalStorage(backend)
    return optuna.create_study(study_name=name, storage=where, load_if_exists=True, directions=directions)


def sampler(seed: int, number: int) -> optuna.samplers.BaseSampler:
    """A sampler for trial `number`: an interrupted study ends as an uninterrupted one would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=derived_seed(seed, number), multivariate=True, group=True)


def search_shapes(
    study: optuna.Study,
    budget: float,
    steps: int,
    follower: Follower | None,
    trials: int,
    seed: int,
    score: Score,
) -> Schedule:
    """Run trials until the study has `trials` finished ones; return the best schedule of `budget` computations."""

    def objective(trial: optuna.Trial) -> float:
        return score(schedule_of(trial, budget, steps, follower))

    points = _first_points(follower, budget, steps)
    done = len(study.get_trials(states=(TrialState.COMPLETE,)))
    for number in range(done, trials):
        if number < len(points) and not study.get_trials(states=(TrialState.WAITING,)):
            study.enqueue_trial(points[number])
        study.sampler = sampler(seed, number)
        study.optimize(objective, n_trials=1)
    return schedule_of(optuna.trial.FixedTrial(study.best_params), budget, steps, follower)


def _first_points(follower: Follower | None, budget: float, steps: int) -> list[dict[str, Any]]:
    """Shapes that are tried first."""
    if follower is None or budget < 3:
        return [{"power": power} for power in (POWERS if budget < MANY * steps else MANY_POWERS)]
    return [
        {"power": power, "lead": lead} for power, lead in ((1.15, LEADS[0]), (1.3, LEADS[0]), (1.4, LEADS[1]))
    ]


def usual_schedule(budget: float, steps: int, follower: Follower | None) -> Schedule:
    """The shape that is tried first; others have to be better by more than chance."""
    first = _first_points(follower, budget, steps)[0]
    return schedule_of(optuna.trial.FixedTrial(first), budget, steps, follower)


def schedule_of(trial: Any, budget: float, steps: int, follower: Follower | None) -> Schedule:
    """The schedule of a trial's parameters."""
    power = trial.suggest_float("power", 1.0, 1.6)
    if follower is None or budget < 3:
        return Schedule(spaced(int(budget), steps, power))
    mask = by_halves(budget, steps, power, trial.suggest_float("lead", 1.0, 1.7))
    return Schedule(mask, follower if "H" in mask else None)
