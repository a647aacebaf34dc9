"""What goes to stdout, what to stderr, and how much of it."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.commands.shop import Cli, Shop, fails, succeeds

from cachesmith import progress
from cachesmith.commands.output import print_json
from cachesmith.commands.shared.spoken import spoken_warnings

ROOT = Path(__file__).parents[2]
POLICY = ROOT / "examples" / "fashion_dit" / "fashion.policy.safetensors"
BLOCK = "\u2588"


@pytest.mark.parametrize("encoding", ["ascii", "cp437", "gbk"])
@pytest.mark.parametrize("arguments", [("calibrate", "--help"), ("inspect", str(POLICY)), ("run", "\u2026")])
def test_encodings_that_lack_letters(encoding: str, arguments: tuple[str, ...]) -> None:
    result = subprocess.run(
        [sys.executable, "-c", "from cachesmith.cli import main; main()", *arguments],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "60"},
        check=False,
    )
    assert result.returncode == (2 if arguments[0] == "run" else 0), result.stderr
    assert b"Error" not in result.stderr.replace(b" Error ", b"")
    (result.stdout + result.stderr).decode(encoding)


def test_json_is_one_document_and_nothing_else(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    policy = ("--policy", shop.policy)
    prompts = ("--prompts", shop.prompts)
    steps = ("--num-inference-steps", 8)
    fitted = tmp_path / "m.policy.safetensors"
    for arguments in (
        ("inspect", shop.policy),
        ("run", shop.model, *policy, "--class-label", 3, "--out", tmp_path / "x.png"),
        ("bench", shop.model, *policy, *prompts, "--samples", 1, "--repeats", 1),
        ("validate", shop.model, *policy, *prompts, "--samples", 1),
        ("fit", shop.model, "--method", "magcache", *prompts, "--out", fitted, "--samples", 1, *steps),
        ("convert", shop.policy, "--to", "cache-dit", "--order", 1, "--out", tmp_path / "c.yaml"),
        ("export", shop.model, "--policy", fitted, "--out", tmp_path / "b", *steps, "--dry-run"),
    ):  # fmt: skip
        assert json.loads(succeeds(cli(*arguments, "--json"))), arguments


def test_numbers_that_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("nan"), "b": [1.5, float("inf")], "c": (True, None, "x")})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "a": None, "b": [1.5, None], "c": [True, None, "x"],
    }  # fmt: skip


def test_quiet_and_progress(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    run = (
        "run",
        shop.model,
        "--class-label",
        3,
        "--num-inference-steps",
        2,
        "--force",
        "--out",
        tmp_path / "x.png",
    )
    loud, quiet = cli(*run), cli(*run, "--quiet")
    assert "loading" in loud.stderr and "sampling: 1 of 1, 0:00:0" in loud.stderr and BLOCK not in loud.stderr
    assert quiet.stderr == "" and succeeds(quiet).startswith("1 picture(s)")


def test_quiet_does_not_hide_warnings(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    run = ("run", shop.model, "--policy", shop.policy, "--class-label", 3, "--out", tmp_path / "x.png", "-q")
    result = cli(*run, "--num-inference-steps", 4)
    succeeds(result)
    assert result.stderr.startswith("warning: ") and "caching is off" in result.stderr


def test_verbose_shows_where_an_error_comes_from(cli: Cli, tmp_path: Path) -> None:
    result = cli("inspect", tmp_path / "none", "-v")
    assert result.exit_code == 1 and "Traceback" in result.stderr
    assert "No such file" in result.stderr.splitlines()[-1]
    fails(cli("inspect", tmp_path / "none"), "No such file")


def test_a_line_every_so_often_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import time

    monkeypatch.setattr(progress, "_EVERY", 0.05)
    written = ""
    with progress.stage("work", 40) as advance:
        for _ in range(30):
            time.sleep(0.01)
            advance(note="busy")
        until = time.monotonic() + 30
        while written.count("\n") < 4 and time.monotonic() < until:
            time.sleep(0.01)
            written += capsys.readouterr().err
    lines = (written + capsys.readouterr().err).splitlines()
    assert len(lines) >= 5 and all(line.startswith("work: ") for line in lines)
    assert any(line.endswith("left, busy") for line in lines), lines
    assert lines[-1].startswith("work: 30 of 40, 0:00:")


def test_parts_of_a_sample_are_no_sample(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.stage("work", 2) as advance:
        for _ in range(99):
            advance(0.02)
    assert capsys.readouterr().err.startswith("work: 1 of 2, ")


def test_quiet_stages_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.quietly(), progress.stage("work", 1) as advance:
        advance()
    assert capsys.readouterr().err == ""


def test_what_pipelines_log_of_a_call_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    """Once for each place in their code; what is about files, or what we say better ourselves, is left out."""
    root, loading = (logging.getLogger(f"diffusers.{name}") for name in ("pipelines.x", "models"))
    with spoken_warnings():
        for rest in ("a bag", "a coat"):
            root.warning("The following part of your input was truncated: %s", rest)
        root.warning("`num_frames - 1` has to be divisible by 4. Rounding to the nearest number.")
        root.info("nothing")
        loading.info("nothing")
    assert capsys.readouterr().err == "warning: The following part of your input was truncated: a bag\n"
    assert logging.getLogger("diffusers.pipelines").propagate
