"""Optuna's studies of a calibration: where they are kept, and how their trials are run and resumed."""

import logging
import shlex
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from cachesmith.files import drop_torn_lines
from cachesmith.sampling.requests import derived_seed

STUDIES = "studies.journal"
"""Where they are in the work folder, unless in a storage of the user's."""


def open_study(storage: str | None, folder: Path, name: str, directions: list[str]) -> optuna.Study:
    """Open or resume a study: in `storage` (an Optuna URL), or in the journal file of the work folder."""
    optuna.logging.set_verbosity(logging.ERROR)  # studies that are resumed are not worth a line
    where: Any = storage
    if storage is None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / STUDIES
        drop_torn_lines(path)
        # a calibration holds its work folder, so a lock that is there was left by one that was killed
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
        backend = optuna.storages.journal.JournalFileBackend(str(path))
        where = optuna.storages.JournalStorage(backend)
    return optuna.create_study(study_name=name, storage=where, load_if_exists=True, directions=directions)


def dashboard(storage: str | None, folder: Path) -> str | None:
    """Return the command that shows the studies in a browser; None where there are none."""
    if storage is None and not (folder / STUDIES).exists():
        return None
    where = shlex.quote(storage or str(folder / STUDIES))
    return f"pip install optuna-dashboard && optuna-dashboard {where}"


def run_trials(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], Any],
    count: int,
    seed: int,
    points: Sequence[dict[str, Any]],
) -> None:
    """Run trials until the study has `count` finished ones; the first have the parameters of `points`.

    What ends a trial is raised as it is, which `optimize` does not do where the storage cannot note the end.
    """
    done = len(study.get_trials(states=(TrialState.COMPLETE,)))
    for number in range(done, count):
        if number < len(points) and not study.get_trials(states=(TrialState.WAITING,)):
            study.enqueue_trial(points[number])
        study.sampler = _sampler(seed, number)
        trial = study.ask()
        try:
            values = objective(trial)
        except BaseException:
            with suppress(Exception):
                study.tell(trial, state=TrialState.FAIL)
            raise
        study.tell(trial, values)


def _sampler(seed: int, number: int) -> optuna.samplers.BaseSampler:
    """A sampler for trial `number`: an interrupted study ends as an uninterrupted one would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=derived_seed(seed, number), multivariate=True, group=True)
