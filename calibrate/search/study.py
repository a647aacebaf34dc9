"""The Optuna study: closed-loop PSNR against full computations over the whole policy space."""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import TrialState

from cachesmith.calibrate.config import CalibrationConfig
from cachesmith.calibrate.search.space import Recorded, arrays_of, starting_points, suggest
from cachesmith.files import drop_torn_lines
from cachesmith.policies import Policy, Profile, unbound
from cachesmith.sampling.evaluate import Evaluator
from cachesmith.sampling.requests import derived_seed

SEARCH_SAMPLES = 16
"""Fitting requests a trial is scored on."""


@dataclass(frozen=True)
class Candidate:
    """A profile with the policy that holds its arrays, and where it came from: a trial's number, if from one."""

    policy: Policy
    profile: Profile
    source: str
    nfc: float
    psnr: float
    trial: int | None = None


def open_study(config: CalibrationConfig, key: str) -> optuna.Study:
    """Open or resume the study of this calibration: a journal file in the work folder."""
    optuna.logging.set_verbosity(logging.ERROR)  # an interrupted trial is not worth a traceback
    config.work.mkdir(parents=True, exist_ok=True)
    journal = study_path(config, key)
    if torn := drop_torn_lines(journal):
        warnings.warn(
            f"{journal} broke off, as a full disk or a power cut leaves it; its last {torn} bytes were dropped and the "
            "search goes on",
            RuntimeWarning,
            stacklevel=2,
        )
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    return optuna.create_study(
        study_name=f"cachesmith-{key}",
        storage=optuna.storages.JournalStorage(backend),
        load_if_exists=True,
        directions=["maximize", "minimize"],
    )


def study_path(config: CalibrationConfig, key: str) -> Path:
    """Return the journal file of this calibration's study."""
    return config.work / f"study-{key}.journal"


def search(
    study: optuna.Study,
    evaluator: Evaluator,
    recorded: Recorded,
    config: CalibrationConfig,
    advance: Callable[..., None],
) -> None:
    """Run trials until the study has `config.trials` finished ones.

    Every trial gets a sampler seeded with the number of those before it, and starting points are handed out one at a
    time, so an interrupted study ends as an uninterrupted one would.
    """
    points = starting_points(sorted({int(budget) for budget in config.budgets.values()}), config.steps)
    done = len(study.get_trials(states=(TrialState.COMPLETE,)))
    advance(done)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        profile = suggest(trial, recorded)
        outcome = evaluator(unbound(profile, arrays_of(profile, recorded)), SEARCH_SAMPLES)
        return outcome.psnr, outcome.nfc

    for number in range(done, config.trials):
        if number < len(points) and not study.get_trials(states=(TrialState.WAITING,)):
            study.enqueue_trial(points[number])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.sampler = optuna.samplers.TPESampler(
                seed=derived_seed(config.seed, number), multivariate=True, group=True
            )
        study.optimize(objective, n_trials=1)
        advance(1, note=f"{len(study.best_trials)} on the front")


def front(study: optuna.Study, recorded: Recorded) -> list[Candidate]:
    """The study's Pareto front as candidates, cheapest first; interrupted trials do not count in their numbers."""
    finished = [t.number for t in study.get_trials(states=(TrialState.COMPLETE,))]
    candidates = []
    for trial in sorted(study.best_trials, key=lambda t: t.values[1]):
        profile = suggest(optuna.trial.FixedTrial(trial.params), recorded)
        policy = unbound(profile, arrays_of(profile, recorded))
        number = finished.index(trial.number)
        candidates.append(
            Candidate(policy, profile, f"trial {number}", trial.values[1], trial.values[0], number)
        )
    return candidates
