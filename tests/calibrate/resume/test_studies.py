"""Trials that end early."""

import resource
from pathlib import Path

import optuna
import pytest

from cachesmith.calibrate.studies import STUDIES, open_study, run_trials


def drawn(trial: optuna.Trial) -> float:
    return float(trial.suggest_float("x", 0, 1))


def test_a_full_disk_is_told_as_such_and_the_study_goes_on(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def filled(trial: optuna.Trial) -> float:
        value = drawn(trial)
        room = (tmp_path / STUDIES).stat().st_size + 10
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        return value

    try:
        with pytest.raises(OSError, match="File too large"):
            run_trials(open_study(None, tmp_path, "one", ["maximize"]), filled, 3, 0, [{"x": 0.25}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    study = open_study(None, tmp_path, "one", ["maximize"])
    run_trials(study, drawn, 3, 0, [{"x": 0.25}])
    finished = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    assert len(finished) == 3 and finished[0].params == {"x": 0.25}


def test_an_interrupted_trial_is_marked_and_repeated(tmp_path: Path) -> None:
    study = open_study(None, tmp_path, "one", ["maximize"])

    def interrupted(trial: optuna.Trial) -> float:
        drawn(trial)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trials(study, interrupted, 1, 0, [{"x": 0.25}])
    run_trials(study, drawn, 1, 0, [{"x": 0.25}])
    assert [(t.state.name, t.params["x"]) for t in study.trials] == [("FAIL", 0.25), ("COMPLETE", 0.25)]
