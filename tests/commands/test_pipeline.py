from pathlib import Path

import pytest
import torch
from tests.commands.shop import Cli, Shop, fails

from cachesmith.commands import pipeline


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
