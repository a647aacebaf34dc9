"""The search space is a pure function of a trial, and every starting point lies in it."""

from pathlib import Path

import numpy as np
import optuna
import pytest

from cachesmith.calibrate.config import CalibrationConfig
from cachesmith.calibrate.search.space import Recorded, arrays_of, segments, starting_points, suggest
from cachesmith.policies import Clusters, Modules, Observed, PolicyError, Profile, Segments, unbound
from cachesmith.policies.base import Arrays

TABLE = np.ones((2, 4), np.float32)
ARRAYS: Arrays = {
    **{
        f"{kind}/{unit}": TABLE
        for kind in ("scales", "corrections")
        for unit in ("stack", "segment", "module")
    },
    **{f"clusters/{unit}": np.arange(12, dtype=np.int32).reshape(2, 6) % 3 for unit in ("stack", "segment")},
    **{f"basis/{unit}": np.eye(6, 2, dtype=np.float32)[None].repeat(2, 0) for unit in ("stack", "segment")},
}
RECORDED = Recorded(
    schedules={n: "C" * n + "F" * (20 - n) for n in range(2, 11)},
    arrays=ARRAYS,
    blocks=8,
)


@pytest.mark.parametrize("point", starting_points([3, 5, 8], 20))
def test_starting_points_make_policies(point: dict[str, object]) -> None:
    profile = suggest(optuna.trial.FixedTrial(point), RECORDED)
    assert unbound(profile, arrays_of(profile, RECORDED)).profile() == profile


def test_random_points_make_policies() -> None:
    study = optuna.create_study(directions=["maximize"], sampler=optuna.samplers.RandomSampler(seed=0))

    def objective(trial: optuna.Trial) -> float:
        profile = suggest(trial, RECORDED)
        unbound(profile, arrays_of(profile, RECORDED))
        seen.append(profile)
        return 0.0

    seen: list[Profile] = []
    study.optimize(objective, n_trials=200)
    assert all(trial.state.name == "COMPLETE" for trial in study.trials)
    combined = [p.forecaster for p in seen if isinstance(p.forecaster.rows, Clusters)]
    assert any(f.subspace is not None and isinstance(f.magnitude, Observed) for f in combined)
    assert not any(p.units == Modules() for p in seen if p.forecaster.subspace is not None)
    for trial, profile in zip(study.trials, seen, strict=True):
        assert suggest(optuna.trial.FixedTrial(trial.params), RECORDED) == profile


def test_segments_are_nearly_equal() -> None:
    assert segments(8, 3) == Segments(starts=(0, 3, 5))


@pytest.mark.parametrize("options", [{"steps": 0}, {"speedups": (40.0,)}, {"fitting": 0}])
def test_senseless_settings_are_refused(options: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(PolicyError):
        CalibrationConfig(work=tmp_path, **options)  # type: ignore[arg-type]


def test_profiles_keep_their_budget() -> None:
    config = CalibrationConfig(steps=50, speedups=(7.14, 6.25, 5.0, 4.54, 3.7, 3.57))
    names = ("7.14x", "6.25x", "5x", "4.54x", "3.7x", "3.57x")
    assert [config.budgets[name] for name in names] == [7, 8, 10, 11, 13.5, 14]
