"""How the house is divided: no folder is crowded, and runtime's rooms know few of each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import cachesmith

PACKAGE = Path(cachesmith.__file__).parent

FILES = 16
"""In a folder."""

EDGES = 60
"""Pairs of runtime's parts, folders and single files, of which one imports the other: 50 now."""


def folders() -> Iterator[Path]:
    for folder in (PACKAGE, *(PACKAGE / name for name in ("policies", "runtime", "calibrate", "export"))):
        yield from {file.parent for file in folder.rglob("*.py")}


def test_a_folder_holds_few_files() -> None:
    counts = {str(folder.relative_to(PACKAGE)): len([*folder.glob("*.py")]) for folder in folders()}
    assert len(counts) > 25
    assert {name: count for name, count in counts.items() if count > FILES} == {}


def test_few_parts_of_the_runtime_know_each_other() -> None:
    root = PACKAGE / "runtime"
    edges = set()
    for file in root.rglob("*.py"):
        part = file.relative_to(root).parts[0].removesuffix(".py")
        if part != "__init__":
            edges |= {(part, other) for other in imported(file) if other != part}
    assert 40 < len(edges) <= EDGES


def imported(file: Path) -> Iterator[str]:
    """The runtime's parts that a file imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cachesmith.runtime"):
            names = node.module.split(".")[2:] or [alias.name for alias in node.names]
            yield from names[:1] if "." in node.module.removeprefix("cachesmith.") else names
