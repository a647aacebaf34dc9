"""What an interruption leaves, what a second run takes up, and what is refused before or after the first run."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from tests.calibrate.small import LABELS, pipeline, recorded, run, settings

from cachesmith.calibrate import CalibrationConfig, calibrate, calibration
from cachesmith.calibrate.cost import CostModel
from cachesmith.calibrate.tune import tune
from cachesmith.calibrate.tune.rows import fitted_rows, fixed_profile
from cachesmith.policies import Fitted, Forecaster, PolicyError, unbound
from cachesmith.sampling import evaluate
from cachesmith.sampling.requests import split


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times differ from run to run, and may rule out a candidate."""
    free = CostModel({(k, m): 0.0 for k in ("stack", "segment", "module") for m in (False, True)})
    monkeypatch.setattr(calibration, "measure_costs", lambda *_: free)


def interrupt(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Ctrl-C at the `call`-th call of `owner.name`."""
    real, calls = getattr(owner, name), [0]

    def interrupting(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(owner, name, interrupting)


@pytest.mark.parametrize(("owner", "name", "call"), [(tune, "_loss", 8), (evaluate.Evaluator, "__call__", 2)])
def test_an_interrupted_calibration_ends_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int
) -> None:
    """In the middle of tuning the second profile's weights, and in the second trial of the search."""
    whole = calibrate(pipeline(), LABELS, settings(tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, owner, name, call)
        run(tmp_path / "parts")
    resumed = calibrate(pipeline(), LABELS, settings(tmp_path / "parts"))
    assert resumed.policy.id == whole.policy.id
    tried = [[t.params for t in r.study.trials if t.values] for r in (whole, resumed)]
    assert tried[0] == tried[1] and len(tried[0]) == 3
    assert not list(tmp_path.glob("**/*.unfinished"))


def test_another_process_finds_the_work(tmp_path: Path) -> None:
    """There, diffusers lists the settings that a scheduler's file leaves out in another order."""
    keys = []
    for listed in (["clip_sample", "thresholding"], ["thresholding", "clip_sample"]):
        pipe = pipeline()
        pipe.scheduler.register_to_config(_use_default_values=listed)
        assert pipe.scheduler.config["_use_default_values"] == listed
        keys.append(calibration._Calibration(pipe, LABELS, settings(tmp_path)).key)
    assert keys[0] == keys[1]


def test_the_fastest_profile_that_holds_a_quality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[Any] = []
    monkeypatch.setattr(calibration, "warn_if_short", lambda *those: compared.append(those))
    policy = run(tmp_path, min_psnr=5.0)
    profile = policy.profile("min-psnr")
    assert compared == [(profile, 5.0)] and profile.quality is not None
    assert profile.nfc is not None and profile.nfc <= (policy.profile("fast").nfc or 0)
    with pytest.raises(PolicyError, match="ask for less with --min-psnr"):
        run(tmp_path, min_psnr=99.5)


def test_an_earlier_policy_is_taken_up(tmp_path: Path) -> None:
    """Its weights are where tuning starts; with no iterations they come out as they went in."""
    first = run(tmp_path / "first", iterations=6)
    again = calibrate(
        pipeline(), LABELS, settings(tmp_path / "again", earlier=first, moves=0, iterations=0)
    ).policy
    for name, profile in first.document.profiles.items():
        quality, before = again.profile(name).quality, profile.quality
        assert quality is not None and before is not None and quality.psnr >= before.psnr - 1e-3
    assert again.document.calibration is not None
    assert f"earlier policy: {first.id}" in again.document.calibration.fitted
    assert settings(Path(), earlier=first).earlier_masks
    with pytest.raises(PolicyError, match="no fixed schedule of the whole stack for 20 steps"):
        settings(tmp_path / "other", earlier=first, steps=20)


def test_an_earlier_policy_that_saw_the_held_out_prompts_is_refused_before_any_work(tmp_path: Path) -> None:
    prompts: list[Any] = [{"class_labels": label} for label in range(20)]
    first = recorded(split(prompts, 2, 2, 2, 0))
    with pytest.raises(PolicyError, match="the earlier policy held out other prompts"):
        calibrate(pipeline(), prompts, settings(tmp_path, earlier=first, heldout=3))
    assert not list(tmp_path.iterdir())


def test_weights_by_group_are_spread_over_channels() -> None:
    ids = np.array([[0, 1, 0]], np.int32)
    weights = np.arange(1 * 4 * 2 * 2, dtype=np.float32).reshape(1, 4, 2, 2)
    row = Fitted(weights="w", ids="i")
    made = unbound(fixed_profile("CCFC", Forecaster(rows=row)), {"w": weights, "i": ids})
    rows = fitted_rows(made, "CCFC")
    assert rows is not None and np.array_equal(rows.outputs.numpy(), weights[..., ids[0]])
    assert rows.inputs.shape == (1, 4, 3, 3) and not rows.inputs.any()
    assert fitted_rows(made, "CFFC") is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"speedups": (1.5,)}, "use 2 <= S <= 25"),
        ({"steps": 6}, "steps is 6; it must be at least 8"),
        ({"trials": 0}, "trials is 0"),
        ({"moves": -1}, "moves is -1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
    ],
)
def test_settings_that_make_no_sense(values: Any, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        CalibrationConfig(**values)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_sampler_that_calls_twice_a_step_is_refused(tmp_path: Path) -> None:
    pipe = pipeline()
    pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(PolicyError, match="visits 31 timesteps in 16 steps"):
        calibrate(pipe, LABELS, settings(tmp_path))


def test_guidance_is_told_from_small_batches(tmp_path: Path) -> None:
    sampler = run(tmp_path, batch=1).document.sampler
    assert sampler is not None and sampler.guidance == "batched"
