"""What the shell completes."""

from pathlib import Path

import pytest
from tests.commands.shop import Shop
from typer.testing import CliRunner

from cachesmith.calibrate.methods import METHODS
from cachesmith.cli import app
from cachesmith.commands.shared import completion
from cachesmith.policies import PRESETS
from cachesmith.policies.convert import SOURCES, TARGETS


def complete(line: str) -> list[str]:
    """Return what bash is offered after `line`."""
    environment = {
        "_CACHESMITH_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    return CliRunner().invoke(app, [], prog_name="cachesmith", env=environment).stdout.split()


def test_the_methods_are_those_of_fit() -> None:
    assert set(completion.METHOD_NAMES) == set(METHODS)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("cachesmith cal", ["calibrate"]),
        ("cachesmith fit m --method h", ["hyca"]),
        ("cachesmith bench m --against hic", ["hicache"]),
        ("cachesmith bench m --against fora,hic", ["fora,hicache"]),
        ("cachesmith run m --dtype bf", ["bfloat16"]),
        ("cachesmith run m --device cp", ["cpu"]),
        ("cachesmith run m --neg", ["--negative-prompt"]),
        ("cachesmith calibrate m --objective ps", ["psnr"]),
        ("cachesmith convert x --from ", [*SOURCES]),
        ("cachesmith convert x --to ", [*TARGETS]),
        ("cachesmith bench m --against ", [*PRESETS]),
    ],
)
def test_values(line: str, offered: list[str]) -> None:
    assert sorted(complete(line)) == sorted(offered)


def test_profiles_of_the_policy_on_the_line(shop: Shop) -> None:
    assert complete(f"cachesmith run m --policy {shop.policy} --profile ") == ["balanced", "fast"]
    assert complete(f"cachesmith run m --policy {shop.policy} --profile f") == ["fast"]
    assert complete("cachesmith run m --policy none --profile f") == []
    assert complete("cachesmith run m --profile f") == []
    assert complete(f"cachesmith export m --policy {shop.policy} --profile b") == ["balanced"]
    for command in ("inspect", "convert"):
        assert complete(f"cachesmith {command} {shop.policy} --profile f") == ["fast"]


def test_policy_files_and_folders(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.policy.safetensors", "a.safetensors", ".hidden.policy.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / "nets" / "pipe").mkdir(parents=True)
    (tmp_path / "nets" / "pipe" / "model_index.json").touch()
    monkeypatch.chdir(tmp_path)
    assert completion.policy_files("") == ["a.policy.safetensors", "nets/"]
    assert completion.policy_files("./a") == ["a.policy.safetensors"]
    assert completion.policy_files(f"{tmp_path}/.h") == [f"{tmp_path}/.hidden.policy.safetensors"]
    assert completion.folders("ne") == ["nets/"]
    assert completion.folders("nets/") == ["nets/pipe"]
    assert completion.folders("none/") == []
    assert complete("cachesmith run ne") == ["nets/"]
