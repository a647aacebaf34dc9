"""What a finished calibration tells its report, end to end on a tiny model."""

import shlex
from pathlib import Path

import pytest
import torch
from optuna.storages.journal import JournalFileBackend, JournalStorage
from tests.calibrate.small import run

from cachesmith.calibrate.report.data import ReportData
from cachesmith.calibrate.report.gather import held_gpus
from cachesmith.policies import Policy


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, ReportData, Path]:
    work = tmp_path_factory.mktemp("work")
    given: list[ReportData] = []

    def write(folder: Path, data: ReportData) -> Path:
        given.append(data)
        return folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cachesmith.calibrate.report.html.write_html", write)
        # fewer at once than are shown
        policy = run(work, report=work / "report", heldout=3, budget=40.0, batch=2)
    return policy, given[0], work


def test_profiles_are_those_of_the_policy(reported: tuple[Policy, ReportData, Path]) -> None:
    policy, data, _ = reported
    for profile in data.profiles:
        quality = policy.profile(profile.name).quality
        assert quality is not None and profile.quality == quality
        assert sum(profile.psnr) / 3 == pytest.approx(quality.psnr)
        assert len(profile.mask) == data.steps == 12


def test_samples_are_the_worst_the_median_and_the_best(reported: tuple[Policy, ReportData, Path]) -> None:
    for profile in reported[1].profiles:
        assert [s.rank for s in profile.samples] == ["worst", "median", "best"]
        assert [s.psnr for s in profile.samples] == sorted(profile.psnr)
        for sample in profile.samples:
            assert len(sample.errors) == 12 and sample.errors[0] == 0 < sample.errors[-1]
            assert sample.prompt.startswith("class_labels: ")
            assert sample.uncached.data != sample.cached.data or sample.psnr > 45


def test_the_front_has_what_users_know(reported: tuple[Policy, ReportData, Path]) -> None:
    _, data, _ = reported
    families = {m.family for m in data.measurements}
    assert families == {"profile", "fewer steps", "even steps", "TaylorSeer", "DBCache"} and not data.notes
    assert all(m.seconds > 0 and m.psnr_low <= m.psnr <= m.psnr_high for m in data.measurements)
    fewer = [m for m in data.measurements if m.family == "fewer steps"]
    assert all(m.name == f"{m.nfc:.0f} steps" for m in fewer)
    for m in (m for m in data.measurements if m.family == "TaylorSeer"):
        assert any(m.nfc <= p.nfc for p in data.profiles)


def test_fitting_leaves_its_losses(reported: tuple[Policy, ReportData, Path]) -> None:
    by_gradients = [p for p in reported[1].profiles if "gradients after" in p.source]
    assert by_gradients and all(p.losses for p in by_gradients)


def test_the_study_is_where_the_printed_command_says(reported: tuple[Policy, ReportData, Path]) -> None:
    _, data, work = reported
    assert data.dashboard is not None
    storage = JournalStorage(JournalFileBackend(shlex.split(data.dashboard)[-1]))
    names = [study.study_name for study in storage.get_all_studies()]
    assert names and all(storage.get_n_trials(storage.get_study_id_from_name(n)) for n in names)
    assert data.command.startswith("calibrate(pipe, prompts, CalibrationConfig(steps=12, budget=40.0")
    assert 0 < data.calibration_seconds < 600 and (work / "report").is_dir()


def test_the_command_line_is_repeated_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from cachesmith.calibrate import CalibrationConfig
    from cachesmith.calibrate.report.gather import command

    for program in ("/usr/bin/cachesmith", "/lib/cachesmith/__main__.py"):  # `python -m cachesmith`
        monkeypatch.setattr("sys.argv", [program, "calibrate", "my model", "--out", "x"])
        assert command(CalibrationConfig()) == "cachesmith calibrate 'my model' --out x"
    monkeypatch.setattr("sys.argv", ["/lib/other/__main__.py", "calibrate"])
    assert command(CalibrationConfig()).startswith("calibrate(pipe, ")
    for token in (["--token", "hf_secret"], ["--token=hf_secret"]):
        monkeypatch.setattr("sys.argv", ["cachesmith", "calibrate", "m", *token, "--out", "x"])
        told = command(CalibrationConfig())
        assert "secret" not in told and told.endswith("--out x")


def test_every_worker_holds_a_gpu() -> None:
    assert held_gpus(torch.device("cuda:1"), 4) == 4 and held_gpus(torch.device("cpu"), 4) == 0
