import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.commands.shop import PROMPTS, Cli, Shop, fails, succeeds

import cachesmith.calibrate
from cachesmith.calibrate import CalibrationConfig
from cachesmith.policies import Policy, load, save


@dataclass(frozen=True)
class Done:
    policy: Policy
    ledger: None = None
    report: None = None


def test_calibrate_hands_everything_over(
    cli: Cli, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def calibrate(pipe: Any, prompts: Any, config: CalibrationConfig, again: Any) -> Done:
        assert callable(again), "workers load the pipeline themselves"
        seen.extend((pipe, prompts, config))
        assert config.out is not None
        config.out.parent.mkdir()
        save(load(shop.policy), config.out)
        return Done(load(shop.policy))

    monkeypatch.setattr(cachesmith.calibrate, "calibrate", calibrate)
    out = tmp_path / "new" / "my shop.policy.safetensors"
    result = cli(
        "calibrate", shop.model, "--prompts", shop.prompts, "--out", out, "--steps", 20, "--budget", 50, "--speedup", 4,
        "--speedup", 2.5, "--min-psnr", 30, "--seed", 2, "--guidance-scale", 1.5, "--fitting", 4, "--time", "1.5h",
        "--heldout", 6, "--batch", 7, "--report", tmp_path / "report", "--gradient-checkpointing", "--space", "rfc",
        "--trials", 3, "--storage", "sqlite:///x.db", "--no-baselines",
    )  # fmt: skip
    said = succeeds(result)
    assert "saved" in said and "optuna-dashboard sqlite:///x.db" in said
    pipe, prompts, config = seen
    assert type(pipe).__name__ == "DiTPipeline" and prompts == PROMPTS
    assert (config.steps, config.budget, config.speedups, config.min_psnr) == (20, 50.0, (4.0, 2.5), 30.0)
    assert (config.space, config.trials, config.storage, config.seconds) == (
        "rfc",
        3,
        "sqlite:///x.db",
        5400.0,
    )
    assert (config.seed, config.guidance_scale, config.batch) == (2, 1.5, 7)
    assert config.gradient_checkpointing and not config.baselines
    assert (config.fitting, config.heldout) == (4, 6)
    assert config.name == "my-shop" and config.report == tmp_path / "report"
    assert config.work == tmp_path / "new" / "my shop.work"
    assert load(out) == load(shop.policy)


@pytest.mark.parametrize(
    ("problem", "said", "code"),
    [
        (KeyboardInterrupt(), "run the same command again to go on", 130),
        (
            ModuleNotFoundError("No module named 'optuna'", name="optuna"),
            "pip install 'cachesmith[calibrate]'",
            1,
        ),
    ],
)
def test_calibrate_that_stops(
    cli: Cli,
    shop: Shop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    problem: BaseException,
    said: str,
    code: int,
) -> None:
    def calibrate(*_: object) -> None:
        raise problem

    monkeypatch.setattr(cachesmith.calibrate, "calibrate", calibrate)
    out = tmp_path / "x.policy.safetensors"
    fails(cli("calibrate", shop.model, "--prompts", shop.prompts, "--out", out), said, code=code)
    assert not out.exists()


def test_calibrate_that_stops_while_it_reports(
    cli: Cli, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy is saved by then, and the same command has to be allowed to write it again."""

    def calibrate(pipe: Any, prompts: Any, config: CalibrationConfig, again: Any) -> None:
        assert config.out is not None
        save(load(shop.policy), config.out)
        raise KeyboardInterrupt

    monkeypatch.setattr(cachesmith.calibrate, "calibrate", calibrate)
    arguments = (
        "calibrate",
        shop.model,
        "--prompts",
        shop.prompts,
        "--out",
        tmp_path / "x.policy.safetensors",
    )
    fails(cli(*arguments), "run the same command again with --force to go on", code=130)
    fails(cli(*arguments), "x.policy.safetensors exists; give --force to overwrite it")
    fails(cli(*arguments, "--force"), "interrupted", code=130)


@pytest.mark.parametrize("name", ["report.md", "report.html", "sheet.png", "config.yaml"])
def test_calibrate_keeps_a_report(cli: Cli, shop: Shop, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    out, report = tmp_path / "x.policy.safetensors", tmp_path
    arguments = ("calibrate", shop.model, "--prompts", shop.prompts, "--out", out, "--report", report)
    fails(cli(*arguments), f"{name} exists; give --force to overwrite it, or change --report")
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "x.json"], "a policy file's name ends in .policy.safetensors"),
        (["--out", "x.policy.safetensors", "--speedup", "40"], "speed-up 40 is out of reach"),
        (
            ["--out", "x.policy.safetensors", "--objective", "beauty"],
            "there is no metric 'beauty'; choose from psnr",
        ),
        (["--out", "x.policy.safetensors", "--time", "soon"], "is no length of time"),
        (["--out", "x.policy.safetensors", "--time", "1h", "--dry-run"], "give --budget with --dry-run"),
        (
            ["--out", "x.policy.safetensors", "--offload", "model"],
            "that a GPU computes, and here the CPU does",
        ),
        (["--out", "x.policy.safetensors", "--prompts", "none.txt"], "cannot read prompts"),
    ],
)
def test_calibrate_refuses_before_any_work(cli: Cli, shop: Shop, arguments: list[str], said: str) -> None:
    fails(cli("calibrate", shop.model, "--prompts", shop.prompts, *arguments), said)


def test_a_dry_run_loads_nothing_and_writes_nothing(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "x.policy.safetensors"
    out.write_text("an earlier one")
    said = succeeds(cli("calibrate", shop.model, "--prompts", shop.prompts, "--out", out, "--dry-run"))
    assert "least squares" in said and "device GiB" in said and "twice the budget" in said
    assert list(tmp_path.iterdir()) == [out] and out.read_text() == "an earlier one"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without")
def test_a_plan_for_a_gpu_needs_none(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    rest = ("--prompts", shop.prompts, "--out", tmp_path / "x.policy.safetensors", "--device")
    result = cli("calibrate", shop.model, *rest, "cuda:1", "--dry-run")
    assert (
        "references" in succeeds(result)
        and "no cuda:1: the plan is for one with memory enough" in result.stderr
    )
    fails(cli("calibrate", shop.model, *rest, "cuda:1"), "no CUDA device that torch can use")
    fails(cli("calibrate", shop.model, *rest, "abacus", "--dry-run"), "no device 'abacus'")


def test_a_dry_run_as_json(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    rest = ("--prompts", shop.prompts, "--out", tmp_path / "x.policy.safetensors", "--dry-run", "--json")
    plan = json.loads(succeeds(cli("calibrate", shop.model, *rest, "--heldout", 10, "--speedup", 5)))
    spent = sum(phase["forwards"] + phase["backwards"] for phase in plan["phases"])
    assert plan["run_equivalents"] == pytest.approx(spent / 50)
    assert plan["heldout_run_equivalents"] == pytest.approx(10 * 1.2)
    assert {phase["name"] for phase in plan["memory"]} >= {"references", "least squares", "measuring"}


def test_a_dry_run_reads_the_configuration_that_would_be_loaded(
    cli: Cli, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None, str | None]] = []

    def config(model: str, revision: str | None, token: str | None, **where: str) -> dict[str, Any]:
        asked.append((model, revision, token))
        return {}

    monkeypatch.setattr("diffusers.AutoModel.load_config", config)
    monkeypatch.setattr("cachesmith.commands.shared.model_folder.expect_reply", lambda *_: None)
    rest = ("--prompts", shop.prompts, "--out", tmp_path / "x.policy.safetensors", "--dry-run")
    said = succeeds(cli("calibrate", "org/name", "--revision", "v2", "--token", "secret", *rest))
    assert asked == [("org/name", "v2", "secret")] and "not known before it is loaded" in said
    fails(cli("calibrate", "./nothing", *rest), "there is no folder ./nothing")
