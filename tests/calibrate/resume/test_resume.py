"""What an interruption leaves, what a second run takes up, and what is refused before or after the first run."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from tests.calibrate.small import LABELS, pipeline, recorded, run, settings

from cachesmith.calibrate import CalibrationConfig, calibrate, calibration, references
from cachesmith.calibrate.closed_loop import fit, polish
from cachesmith.files import sole_writer
from cachesmith.policies import Policy, PolicyError, load
from cachesmith.sampling.requests import split


def interrupt(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Ctrl-C at the `call`-th call of `owner.name`."""
    real, calls = getattr(owner, name), [0]

    def interrupting(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(owner, name, interrupting)


def same_weights(one: Policy, other: Policy) -> bool:
    same = all(np.allclose(one.arrays[name], other.arrays[name], atol=1e-6) for name in one.arrays)
    gates = [{n: p.gate for n, p in policy.document.profiles.items()} for policy in (one, other)]
    return same and {*one.arrays} == {*other.arrays} and gates[0] == gates[1]


def test_an_interrupted_calibration_ends_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While references are sampled, while a schedule is tried, while it is fitted, and among its gradients."""
    changes: dict[str, Any] = {"budget": 24.0, "batch": 2}
    whole = calibrate(pipeline(), LABELS, settings(tmp_path / "whole", **changes))
    for owner, name, call in (
        (references, "sample", 2),
        (fit.SegmentFitter, "_segment", 4),
        (fit.SegmentFitter, "_segment", 9),
        (polish.Polisher, "_gradients", 2),
    ):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, owner, name, call)
            run(tmp_path / "parts", **changes)
    monkeypatch.setattr(references, "sample", None)  # nothing of the references is sampled again
    resumed = calibrate(pipeline(), LABELS, settings(tmp_path / "parts", **changes))
    assert same_weights(whole.policy, resumed.policy)
    assert whole.policy.id == resumed.policy.id
    sampled = [result.ledger.phases["references"].forwards for result in (whole, resumed)]
    assert sampled[0] == sampled[1]


def test_a_reference_that_is_missing_is_sampled_in_the_batch_it_was_in(tmp_path: Path) -> None:
    whole = run(tmp_path)
    (lost,) = tmp_path.glob("references-*/00001.pt")
    lost.unlink()
    for kept in (*tmp_path.glob("*.pt"), *tmp_path.glob("scores-*")):
        kept.unlink()
    again = run(tmp_path)
    assert all(np.array_equal(whole.arrays[name], again.arrays[name]) for name in whole.arrays)
    assert whole.id == again.id


def test_another_process_finds_the_work(tmp_path: Path) -> None:
    """There, diffusers lists the settings that a scheduler's file leaves out in another order."""
    keys = []
    for listed in (["clip_sample", "thresholding"], ["thresholding", "clip_sample"]):
        pipe = pipeline()
        pipe.scheduler.register_to_config(_use_default_values=listed)
        assert pipe.scheduler.config["_use_default_values"] == listed
        keys.append(calibration._Calibration(pipe, LABELS, settings(tmp_path)).key)
    assert keys[0] == keys[1]


def test_an_earlier_policy_is_gone_on_from(tmp_path: Path) -> None:
    """Without a budget for gradients, its weights come out as they went in."""
    first = run(tmp_path / "first")
    again = run(tmp_path / "again", earlier=first, budget=12.0, fitting=8)
    assert same_weights(first, again)
    record = again.document.calibration
    assert record is not None and f"earlier policy: {first.id}" in record.fitted
    assert any(line.endswith("from the earlier policy") for line in record.fitted)


def test_an_earlier_policy_that_saw_the_held_out_prompts_is_refused_before_any_work(tmp_path: Path) -> None:
    prompts: list[Any] = [{"class_labels": label} for label in range(20)]
    first = recorded(split(prompts, 2, 2, 2, 0))
    with pytest.raises(PolicyError, match="the earlier policy held out other prompts"):
        calibrate(pipeline(), prompts, settings(tmp_path, earlier=first, heldout=3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"speedups": (1.0,)}, "use 1 < S <= 25"),
        ({"steps": 8, "speedups": (5.0,)}, "use 1 < S <= 4"),
        ({"steps": 3}, "steps is 3; it must be at least 4"),
        ({"trials": 0}, "trials is 0"),
        ({"budget": 5}, "budget is 5; it must be at least 10"),
        ({"budget": float("nan")}, "budget is nan"),
        ({"fitting": 0}, "fitting is 0"),
        ({"seconds": -1.0}, "seconds is -1.0"),
        ({"objective": "beauty"}, "there is no metric 'beauty'; choose from psnr, ssim, lpips"),
        ({"objective": "lpips"}, "needs weights; give their file with --lpips"),
        ({"objective": "ssim", "space": "rfc"}, "is for the space `stack`"),
        ({"steps": 7, "space": "rfc"}, "needs 8 steps or more"),
        ({"space": "modules"}, "choose stack or rfc"),
    ],
)
def test_settings_that_make_no_sense(values: Any, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        CalibrationConfig(**values)


def test_profiles_keep_their_budget() -> None:
    config = CalibrationConfig(steps=50, speedups=(7.14, 6.25, 5.0, 4.54, 3.7, 3.57))
    assert [*config.budgets.values()] == [7, 8, 10, 11, 13.5, 14]
    assert [*config.budgets] == ["7.14x", "6.25x", "balanced", "4.54x", "3.7x", "3.57x"]
    assert [*CalibrationConfig().budgets] == ["quality", "balanced", "fast"]


@pytest.mark.parametrize(
    ("steps", "expected"), [(8, [5, 4, 3]), (6, [3.5, 3, 2]), (4, [2.5, 2, 2]), (9, [2.5, 2, 2])]
)
def test_few_steps_have_profiles_of_their_own(steps: int, expected: list[float]) -> None:
    assert [*CalibrationConfig(steps=steps).budgets.values()] == expected


def test_a_profile_computes_less_than_all_steps() -> None:
    config = CalibrationConfig(steps=8, speedups=(1.6, 2.0, 1 + 1e-12))
    assert config.budgets == {"quality": 5, "balanced": 4, "1x": 7.5}
    assert config.most_computed == 7 and CalibrationConfig(steps=50, speedups=(1.6,)).most_computed == 31


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_sampler_that_calls_twice_a_step_is_refused(tmp_path: Path) -> None:
    pipe = pipeline()
    pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(PolicyError, match="took 23 steps of 12"):
        calibrate(pipe, LABELS, settings(tmp_path))


def test_single_modules_are_searched_within_the_budget(tmp_path: Path) -> None:
    result = calibrate(pipeline(), LABELS, settings(tmp_path, space="rfc", budget=20.0, trials=4))
    (profile,) = result.policy.document.profiles.values()
    assert profile.units.kind == "module" and profile.nfc is not None and profile.nfc <= 3
    assert {"references", "recording", "trials", "measuring"} == {*result.ledger.phases}
    assert result.ledger.runs - result.ledger.phases["measuring"].runs(12) <= 20


def test_the_policy_is_there_before_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Path:
        raise OSError("No space left on device")

    monkeypatch.setattr("cachesmith.calibrate.calibration.write_report", full)
    out = tmp_path / "x.policy.safetensors"
    with pytest.raises(OSError, match="No space"):
        run(tmp_path / "work", report=tmp_path / "report", out=out)
    assert load(out).document.profiles


def test_two_calibrations_do_not_share_a_work_folder(tmp_path: Path) -> None:
    with sole_writer(tmp_path), pytest.raises(PolicyError, match="another calibration works in"):
        run(tmp_path)


def test_a_torn_journal_and_a_stale_lock_are_gone_on_from(tmp_path: Path) -> None:
    """A full disk leaves half a line; a killed process leaves its lock."""
    whole = run(tmp_path / "whole")
    run(tmp_path / "torn")
    (journal,) = (tmp_path / "torn").glob("*.journal")
    journal.write_bytes(journal.read_bytes()[:-20])
    journal.with_name(f"{journal.name}.lock").symlink_to(journal)
    for kept in (tmp_path / "torn").glob("*.pt"):
        kept.unlink()
    assert run(tmp_path / "torn").document.profiles.keys() == whole.document.profiles.keys()
