"""What messages and docstrings send a reader to is there: names to import, options to give, files to open."""

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache

import pytest
from typer.main import get_command

from cachesmith.cli import app
from tests.test_names import ROOT, sources

OTHERS = {
    "--head",  # of `ray start`
    "--address",
}
THEIRS = {"runtime/cache/dpcache.py"}  # a file of SGLang
METADATA = {"cachesmith.policy", "cachesmith.blocks", "cachesmith.policy.safetensors"}
"""Not modules: keys in a graph's metadata, and a file's usual name."""

NAME = re.compile(r"\bcachesmith(?:\.\w+)+")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
FILE = re.compile(r"\b(?:runtime|policies|calibrate|export|commands|sampling)/[\w/]+\.(?:py|json|md)")


@cache
def said() -> tuple[tuple[str, str], ...]:
    """Every text in the product's sources with its place, but for the table of options' old names."""
    return tuple(texts())


def texts() -> Iterator[tuple[str, str]]:
    for path in sources():
        if path.name == "spellings.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value


def options() -> set[str]:
    known = {"--help", "--version"}
    for command in get_command(app).commands.values():  # type: ignore[attr-defined]
        for parameter in command.params:
            known |= {*parameter.opts, *parameter.secondary_opts}
    return known


def exists(name: str) -> bool:
    """Whether `name` is a module, or something in one."""
    module, _, rest = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ImportError:
        return bool(module) and exists_in(module, rest)
    return True


def exists_in(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name)
    except ImportError:
        return False


@pytest.mark.filterwarnings("ignore:.*the old name:DeprecationWarning")
def test_names_can_be_imported() -> None:
    named = {(where, name) for where, text in said() for name in NAME.findall(text) if name not in METADATA}
    assert len(named) > 20, "the texts were not read"
    assert {(where, name) for where, name in named if not exists(name)} == set()


@pytest.mark.parametrize(("pattern", "least"), [(OPTION, 100), (FILE, 3)])
def test_options_and_files_are_there(pattern: re.Pattern[str], least: int) -> None:
    known = options() | OTHERS | THEIRS
    found = {(where, name) for where, text in said() for name in pattern.findall(text)}
    assert len(found) >= least, "the texts were not read"
    assert {(w, n) for w, n in found if n not in known and not (ROOT / n).exists()} == set()
