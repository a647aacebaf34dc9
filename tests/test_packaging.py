import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "diffusers", "transformers", "optuna", "sklearn", "matplotlib", "onnx", "tensorrt")


@pytest.fixture(scope="module")
def setuptools_table() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return table


def test_every_folder_with_an_init_is_packaged(setuptools_table: dict[str, Any]) -> None:
    """The editable install works without; the wheel would silently lack the folder."""
    places = {str(Path(folder)) for folder in setuptools_table["package-dir"].values()}
    roots = [ROOT / name for name in ("calibrate", "policies", "export", "runtime", "src")]
    found = {
        str(init.parent.relative_to(ROOT))
        for root in roots
        for init in root.rglob("__init__.py")
        if not any(parent.is_symlink() for parent in init.parents)
    }
    assert found == places


def test_the_table_names_a_folder_for_every_package(setuptools_table: dict[str, Any]) -> None:
    assert sorted(setuptools_table["packages"]) == sorted(setuptools_table["package-dir"])


@pytest.mark.parametrize("name", ["calibrate", "policies", "export", "runtime"])
def test_static_tools_see_the_folders_through_relative_links(name: str) -> None:
    link = ROOT / "src" / "cachesmith" / name
    assert link.is_symlink() and link.readlink() == Path("..") / ".." / name


@pytest.mark.parametrize("module", ["cachesmith", "cachesmith.cli", "cachesmith.policies"])
def test_import_is_light(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert isolated(code).stdout.strip() == "[]"


def test_inspect_and_help_are_light() -> None:
    golden = ROOT / "tests" / "policies" / "golden" / "v1.policy.safetensors"
    for arguments in (["inspect", str(golden)], ["run", "--help"]):
        code = (
            "import sys; from cachesmith.cli import app; app("
            f"{arguments!r}, standalone_mode=False); print([m for m in {HEAVY!r} if m in sys.modules])"
        )
        assert isolated(code).stdout.splitlines()[-1] == "[]"


def isolated(code: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done
