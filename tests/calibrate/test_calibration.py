"""Calibration end to end on a tiny random model: disjoint parts, reproducible, resumable, a report to look at."""

from pathlib import Path

import pytest
from tests.calibrate.small import pipeline, run, settings
from tests.tiny import sample_dit

from cachesmith.calibrate.report.report import FILES
from cachesmith.policies import Policy, load, save
from cachesmith.runtime import apply


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Path]:
    work = tmp_path_factory.mktemp("work")
    return run(work, report=work / "report"), work


def test_profiles_hold_their_budgets(calibrated: tuple[Policy, Path]) -> None:
    policy, _ = calibrated
    budgets = settings(Path()).budgets
    assert {*policy.document.profiles} == {*budgets} == {"4x"}
    for name, profile in policy.document.profiles.items():
        assert profile.nfc is not None and profile.nfc <= budgets[name] + 1e-9
        assert (
            profile.quality is not None
            and profile.quality.psnr_low <= profile.quality.psnr <= profile.quality.psnr_high
        )


def test_policy_survives_its_file_and_runs(calibrated: tuple[Policy, Path], tmp_path: Path) -> None:
    policy, _ = calibrated
    save(policy, tmp_path / "x.policy.safetensors")
    loaded = load(tmp_path / "x.policy.safetensors")
    assert loaded == policy
    pipe = pipeline()
    with apply(pipe, loaded, "4x") as session:
        sample_dit(pipe, steps=12, guidance_scale=1.5)
    assert session.stats.nfc == pytest.approx(loaded.profile("4x").nfc or 0)
    assert not session.stats.fallbacks


def test_fitting_and_heldout_seeds_are_disjoint(calibrated: tuple[Policy, Path]) -> None:
    record = calibrated[0].document.calibration
    assert record is not None
    assert not set(record.fitting_seeds) & set(record.heldout_seeds)
    assert record.fitting_size == 4 and record.heldout_size == 2


def test_report_has_its_parts(calibrated: tuple[Policy, Path]) -> None:
    folder = calibrated[1] / "report"
    text = (folder / "report.md").read_text()
    for name in ("front.png", "timeline.png", "errors.png", "sheet.png"):
        assert (folder / name).stat().st_size > 1000 and name in text
    page = (folder / "report.html").read_text()
    assert calibrated[0].id in page and "TaylorSeer" in page
    assert {path.name for path in folder.iterdir()} == {*FILES}, "what --force is asked for"
    assert "| least squares |" in text


@pytest.mark.parametrize("batch", [1])
def test_guidance_is_told_from_batches_of_any_size(tmp_path: Path, batch: int) -> None:
    sampler = run(tmp_path, batch=batch).document.sampler
    assert sampler is not None and sampler.guidance == "batched"
