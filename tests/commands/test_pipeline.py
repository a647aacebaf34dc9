from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from tests.commands.shop import Cli, Shop, fails
from tests.tiny import policy

from cachesmith.commands import options, pipeline
from cachesmith.runtime.models.fingerprint import sampler_key
from cachesmith.runtime.pipeline_call import PipelineCall


def test_a_missing_folder(cli: Cli, tmp_path: Path) -> None:
    fails(cli("run", tmp_path / "none", "--class-label", 3, "--out", "x.png"), "there is no folder")


def test_a_folder_without_a_pipeline(cli: Cli, tmp_path: Path) -> None:
    fails(cli("run", tmp_path, "--class-label", 3, "--out", "x.png"), "it has no model_index.json")


def test_a_file_instead_of_a_folder(cli: Cli, shop: Shop) -> None:
    fails(cli("run", shop.prompts, "--class-label", 3, "--out", "x.png"), "is a file; give the folder")


@pytest.mark.parametrize(
    "index", ["{", "[]", "{}", '{"_class_name": "Nothing"}', '{"_class_name": "DiTPipeline"}']
)
def test_a_damaged_pipeline(cli: Cli, tmp_path: Path, index: str) -> None:
    (tmp_path / "model_index.json").write_text(index)
    fails(cli("run", tmp_path, "--class-label", 3, "--out", "x.png"), "cannot load a pipeline from")


def test_a_name_the_hub_does_not_know(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no such repository\nand much advice")

    monkeypatch.setattr("cachesmith.commands.shared.model_folder.expect_reply", lambda *_: None)
    monkeypatch.setattr("diffusers.DiffusionPipeline.load_config", offline)
    result = cli("run", "org/none", "--class-label", 3, "--out", "x.png")
    fails(result, "there is no folder org/none, and the hub gave none: no such repository;")
    assert "much advice" not in result.stderr


def test_out_of_memory_names_the_remedy(
    cli: Cli, shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("cachesmith.sampling.render.Renderer.__call__", full)
    fails(cli("run", shop.model, "--class-label", 3, "--out", tmp_path / "x.png"), "Try a smaller --batch")


def test_our_own_faults_are_not_hidden(cli: Cli, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(pipeline, "_load", broken)
    result = cli("run", shop.model, "--class-label", 3, "--out", "x.png")
    assert isinstance(result.exception, KeyError)


def test_traceback_on_request(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHESMITH_TRACEBACK", "1")
    result = cli("run", tmp_path, "--class-label", 3, "--out", "x.png")
    assert "model_index.json" in str(result.exception)


def test_interrupted(cli: Cli, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "_load", interrupt)
    fails(cli("run", shop.model, "--class-label", 3, "--out", "x.png"), "interrupted", code=130)


class Video:
    """A pipeline of two experts, as far as its call is looked at."""

    def __call__(
        self, height: int = 480, width: int = 832, num_frames: int = 81,
        guidance_scale: float = 5.0, guidance_scale_2: float | None = None,
    ) -> None:  # fmt: skip
        raise AssertionError


@pytest.mark.parametrize(
    ("given", "common"),
    [
        (
            {},
            {"height": 32, "width": 64, "num_frames": 9, "guidance_scale": 2.0, "guidance_scale_2": 3.0},
        ),
        ({"guidance_scale": 4.0}, {"height": 32, "width": 64, "num_frames": 9, "guidance_scale": 4.0}),
        ({"width": 16}, {"width": 16, "num_frames": 9, "guidance_scale": 2.0, "guidance_scale_2": 3.0}),
    ],
)
def test_what_the_user_leaves_open_is_the_policys(given: dict[str, Any], common: dict[str, Any]) -> None:
    size = {"height": 32, "width": 64, "num_frames": 9}
    asked = {"guidance_scale": 2.0, "guidance_scale_2": 3.0, "attention_kwargs.scale": 1.0}
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(7)
    sampler = sampler_key(scheduler, "sequential", [PipelineCall({**asked, **size}, (4, 4))])
    found = pipeline.sampling(Video(), policy(sampler=sampler), None, options.Sampling(**given))
    assert found == (7, common)
    assert pipeline.sampling(Video(), None, None, options.Sampling(**given)) == (50, given)


def test_run_says_what_it_has_from_the_policy(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    run = (
        "run",
        shop.model,
        "--policy",
        shop.policy,
        "--class-label",
        3,
        "--force",
        "--out",
        tmp_path / "x.png",
    )
    note = "note: guidance_scale 1.5: as the policy was calibrated"
    assert note in cli(*run).stderr
    assert note not in cli(*run, "--guidance-scale", 4).stderr
