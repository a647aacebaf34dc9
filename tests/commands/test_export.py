"""`cachesmith export`, and the commands that take its bundle."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.commands.shop import Cli, Shop, fails
from tests.tiny import policy

from cachesmith.commands.pipeline import largest_batch
from cachesmith.policies import SamplerKey, preset, save
from cachesmith.policies.bundle.manifest import Range


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "stack.policy.safetensors"
    save(policy(), path)
    return path


def test_what_it_would_export(shop: Shop, stacked: Path, cli: Cli, tmp_path: Path) -> None:
    done = cli("export", shop.model, "--policy", stacked, "--out", tmp_path / "b", "--dry-run")
    assert done.exit_code == 0 and "blocks-000-002" in done.stdout and "nothing was written" in done.stdout
    assert not (tmp_path / "b").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "manifest.json").write_text("mine")
    again = cli("export", shop.model, "--policy", stacked, "--out", tmp_path / "b", "--dry-run")
    assert again.exit_code == 0, "nothing is overwritten"


def test_export_inspect_run(shop: Shop, stacked: Path, cli: Cli, tmp_path: Path) -> None:
    bundle = tmp_path / "b"
    options = ("--policy", stacked, "--out", bundle, "--steps", 8, "--target", "onnxruntime", "--json")
    first = cli("export", shop.model, *options)
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["graphs"] == 1
    fails(
        cli("export", shop.model, *options),
        "manifest.json exists; give --force to overwrite it, or change --out",
    )
    assert json.loads(cli("export", shop.model, *options, "--force").stdout)["graphs"] == 0

    shown = cli("inspect", bundle)
    assert shown.exit_code == 0 and "2 files, all as exported" in shown.stdout
    assert json.loads(cli("inspect", bundle, "--json").stdout)["id"] == json.loads(first.stdout)["id"]

    picture = tmp_path / "a.png"
    run = (
        "run",
        shop.model,
        "--bundle",
        bundle,
        "--class-label",
        3,
        "--steps",
        8,
        "--out",
        picture,
        "--force",
        "--json",
    )
    cached = cli(*run, "--policy", stacked, "--drop-torch-weights")
    assert cached.exit_code == 0 and json.loads(cached.stdout)["nfc"] < 8, cached.output
    assert json.loads(cli(*run).stdout)["nfc"] == 8
    split = json.loads(cli(*run, "--num-images", 9).stdout)
    assert (split["pictures"], split["batch"], split["fallbacks"]) == (9, 4, {})

    by_torch = cli(*run, "--count", 9, "--outside", "torch")
    assert by_torch.exit_code == 0 and "torch computes what the engines cannot" in by_torch.stderr, (
        by_torch.output
    )
    assert [*json.loads(by_torch.stdout)["fallbacks"].values()] == [8]
    graphs = cli(*run, "--cuda-graphs")
    assert graphs.exit_code == 1 and "CUDA graphs are for backend tensorrt" in graphs.stderr

    compared = cli(
        "bench", shop.model, "--policy", stacked, "--bundle", bundle, "--prompts", shop.prompts, "--steps", 8,
        "--samples", 5, "--repeats", 1, "--json",
    )  # fmt: skip
    assert compared.exit_code == 0, compared.output
    facts = json.loads(compared.stdout)
    assert facts["batch"] == 4, "guidance doubles what was exported for up to 8"
    rows = {row["name"]: row for row in facts["rows"]}
    assert [*rows] == ["uncached", "default", "uncached, engines", "default, engines"]
    assert rows["default"]["nfc"] == rows["default, engines"]["nfc"] < 8

    next(bundle.glob("*.data")).write_bytes(b"")
    assert "copy the whole bundle again" in cli("inspect", bundle).stderr


def test_a_policy_of_modules(shop: Shop, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "rfc.policy.safetensors"
    save(preset("rfc"), path)
    refused = cli("export", shop.model, "--policy", path, "--out", tmp_path / "b")
    assert refused.exit_code == 1 and "--blockwise" in refused.stderr and not (tmp_path / "b").exists()


def test_a_range_that_is_none(shop: Shop, stacked: Path, cli: Cli, tmp_path: Path) -> None:
    done = cli("export", shop.model, "--policy", stacked, "--out", tmp_path / "b", "--pictures", "4:1")
    assert done.exit_code == 2 and "MIN:BEST:MAX" in done.stderr


@pytest.mark.parametrize(
    ("least", "guidance", "most"),
    [
        (1, "batched", 4),  # halves of guidance are computed alone at some steps
        (2, "batched", 4),
        (1, "none", 8),
        (1, "sequential", 8),
        (1, None, 8),
        (2, None, 4),
    ],
)
def test_engines_take_so_many_pictures(least: int, guidance: str | None, most: int) -> None:
    def engines(outside: str) -> Any:
        ranges = {"batch": Range(min=least, opt=least, max=8)}
        manifest = SimpleNamespace(segments=[SimpleNamespace(ranges=ranges), SimpleNamespace(ranges={})])
        return SimpleNamespace(outside=outside, manifest=manifest)

    sampler = {"scheduler": "S", "steps": 1, "sigmas": (1.0,), "guidance": guidance}
    made = None if guidance is None else policy(sampler=SamplerKey.model_validate(sampler))
    assert largest_batch(engines("error"), 32, made) == most
    assert largest_batch(engines("error"), 3, made) == 3
    assert largest_batch(engines("torch"), 32, made) == largest_batch(None, 32, made) == 32
