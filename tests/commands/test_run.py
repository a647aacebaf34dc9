import json
from pathlib import Path

import pytest
import torch
from tests.commands.shop import STEPS, Cli, Shop, fails, picture_size, pixels, succeeds

from cachesmith.commands.shared.steps_told import steps_told
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import requests


def test_run_with_a_policy(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "made" / "one.png"
    said = succeeds(cli("run", shop.model, "--policy", shop.policy, "--class-label", 3, "--out", out))
    assert "computed 5.00 of 10 steps" in said
    assert picture_size(out) == (16, 16)


def test_run_json_and_grid(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    result = cli(
        "run", shop.model, "--policy", shop.policy, "--profile", "fast", "--class-label", 3, "--class-label", 8,
        "--count", 2, "--out", tmp_path / "grid.png", "--json",
    )  # fmt: skip
    facts = json.loads(succeeds(result))
    assert (facts["pictures"], facts["steps"], facts["nfc"], facts["fallbacks"]) == (4, STEPS, 2.0, {})
    assert facts["cache_bytes"] > 0 and facts["seconds"] > 0
    assert picture_size(tmp_path / "grid.png")[0] == 2 * 100 + 4


def test_run_without_a_policy_computes_everything(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    arguments = (
        "--class-label",
        3,
        "--count",
        2,
        "--steps",
        8,
        "--separate",
        "--out",
        tmp_path / "p.png",
        "--json",
    )
    facts = json.loads(succeeds(cli("run", shop.model, *arguments)))
    assert facts["nfc"] == facts["steps"] == 8
    assert [Path(f).name for f in facts["files"]] == ["p-0.png", "p-1.png"]
    assert all(Path(f).exists() for f in facts["files"])


def test_the_same_seed_gives_the_same_picture_in_any_company(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    common = ("run", shop.model, "--policy", shop.policy, "--class-label", 3, "--separate", "--out")
    succeeds(cli(*common, tmp_path / "all.png", "--count", 3))
    succeeds(cli(*common, tmp_path / "one.png", "--seed", 1))
    together, alone = pixels(tmp_path / "all-1.png"), pixels(tmp_path / "one.png")
    assert int((together - alone).abs().max()) <= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--class-label", "3", "--out", "x.unknown"], "end its name in .png"),
        (["--out", "x.png"], "give either --prompt or --class-label or --prompts"),
        (
            ["--out", "x.png", "--class-label", "3", "--prompt", "a"],
            "give either --prompt or --class-label or --prompts",
        ),
        (["--out", "x.png", "--class-label", "3", "--prompts", "p.txt"], "or --prompts"),
        (["--out", "x.png", "--prompts", "none.txt"], "cannot read prompts from none.txt"),
        (["--out", "x.png", "--prompt", "a bag"], "DiTPipeline takes no 'prompt'; it takes class_labels"),
        (
            ["--out", "x.png", "--class-label", "5000"],
            "class label 5000 is not valid; give one whole number from 0",
        ),
        (["--out", "x.png", "--class-label", "bag"], "there is no class label 'bag'"),
        (["--out", "x.png", "--class-label", "3", "--profile", "fast"], "give --policy as well"),
        (["--out", "x.png", "--class-label", "3", "--device", "abacus"], "there is no device 'abacus'"),
        (["--out", "x.png", "--class-label", "3", "--policy", "none.policy.safetensors"], "No such file"),
    ],
)
def test_run_refuses(cli: Cli, shop: Shop, arguments: list[str], said: str) -> None:
    fails(cli("run", shop.model, *arguments), said)


def test_run_draws_a_file_of_prompts(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    """Twice each, in turn; labels by number or name, and the line is named where one is wrong."""
    run = ("run", shop.model, "--num-inference-steps", 2, "--separate")
    succeeds(cli(*run, "--prompts", shop.prompts, "--num-images", 2, "--out", tmp_path / "p.png"))
    assert len([*tmp_path.glob("p-*.png")]) == 4
    succeeds(cli(*run, "--class-label", 8, "--seed", 3, "--out", tmp_path / "one.png"))
    assert int((pixels(tmp_path / "p-3.png") - pixels(tmp_path / "one.png")).abs().max()) <= 1
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"class_labels": 3}\n{"class_labels": 3, "guidance_scale": "4"}')
    fails(cli(*run, "--prompts", wrong, "--out", tmp_path / "w.png"), "wrong.jsonl, line 2: 'guidance_scale'")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without one")
def test_run_says_that_there_is_no_gpu(cli: Cli, shop: Shop) -> None:
    fails(
        cli("run", shop.model, "--class-label", 3, "--out", "x.png", "--device", "cuda"), "write --device cpu"
    )


def test_run_refuses_an_unknown_profile_before_loading(cli: Cli, shop: Shop) -> None:
    arguments = ("--policy", shop.policy, "--profile", "none", "--class-label", 3, "--out", "x.png")
    fails(cli("run", "/missing/model", *arguments), "has no profile 'none'; choose from balanced, fast")


def test_run_keeps_the_memory_budget(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    arguments = ("--policy", shop.policy, "--class-label", 3, "--out", tmp_path / "x.png")
    fails(cli("run", shop.model, *arguments, "--memory-budget", "1KiB"), "memory_budget is 1,024")
    succeeds(cli("run", shop.model, *arguments, "--memory-budget", "1GiB"))


def test_run_says_once_when_the_policy_is_off(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    """Few steps: the runtime warns and computes everything."""
    result = cli(
        "run", shop.model, "--policy", shop.policy, "--steps", 4, "--class-label", 3, "--count", 2, "--batch", 1,
        "--out", tmp_path / "x.png",
    )  # fmt: skip
    assert "computed 4.00 of 4 steps" in succeeds(result)
    assert result.stderr.count("warning: ") == 1 and "caching is off" in result.stderr


@pytest.mark.parametrize("batch", [2, 3])
def test_progress_goes_by_steps(shop: Shop, batch: int) -> None:
    """A call of the pipeline may take minutes."""
    told: list[float] = []
    renderer, asked = Renderer(shop.pipe, 10, batch), requests([{"class_labels": 1}], 3, 0)
    with steps_told(renderer, asked, told.append):
        renderer(asked)
    assert len(told) == 10 * -(-3 // batch) + 1
    assert sum(told) == pytest.approx(3) and max(told) == pytest.approx(0.3 if batch == 3 else 0.15)


def test_run_says_what_it_took(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    run = ("run", shop.model, "--class-label", 3, "--num-images", 2, "--num-inference-steps", 2)
    facts = json.loads(succeeds(cli(*run, "--out", tmp_path / "x.png", "--json")))
    assert facts["seconds_per_picture"] == facts["seconds"] / 2
    assert 50 * 2**20 < facts["peak_memory_bytes"] < 2**36
    said = succeeds(cli(*run, "--out", tmp_path / "y.png"))
    assert " s each" in said and "peak memory" in said


def test_run_keeps_a_picture_that_exists(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    out.write_text("mine")
    run = ("run", shop.model, "--class-label", 3, "--num-inference-steps", 2, "--out", out)
    fails(cli(*run), "x.png exists; give --force to overwrite it, or change --out")
    assert out.read_text() == "mine"
    succeeds(cli(*run, "--force"))
    assert picture_size(out) == (16, 16)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--drop-torch-weights",),
            "--drop-torch-weights is about a bundle's engines; give --bundle as well",
        ),
        (("--cuda-graphs",), "--cuda-graphs is about"),
        (("--backend", "onnxruntime"), "--backend is about"),
        (("--outside", "torch"), "--outside is about"),
        (("--bundle", "none"), "cannot read none/manifest.json"),
    ],
)
def test_engines_without_a_bundle_are_told_before_loading(
    cli: Cli, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    fails(cli("run", "/missing/model", "--class-label", 3, "--out", tmp_path / "x.png", *arguments), said)


def test_run_says_that_a_picture_is_not_finite(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    run = ("run", shop.model, "--class-label", 3, "--num-images", 2, "--num-inference-steps", 2)
    result = cli(*run, "--guidance-scale", 1e38, "--out", tmp_path / "x.png")
    succeeds(result)
    assert "warning: 2 of 2 samples hold numbers that are not finite" in result.stderr
    assert "not finite" not in cli(*run, "--out", tmp_path / "y.png").stderr
