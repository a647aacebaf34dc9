"""One word, one meaning: what a module of the product defines for others has a name that no other module defines."""

import ast
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import cachesmith

ROOT = Path(cachesmith.__file__).parent


def defined(tree: ast.Module) -> Iterator[str]:
    """Names of the functions, classes and constants of a module."""
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))


def sources() -> Iterator[Path]:
    """The package's files, those in linked folders too."""
    for folder, _, names in os.walk(ROOT, followlinks=True):
        yield from (Path(folder) / name for name in names if name.endswith(".py"))


def places() -> dict[str, set[str]]:
    """The modules that define each public name; a command, which is called as its library function is, aside."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sources():
        where = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name in defined(tree):
            if not name.startswith("_") and where != f"commands/{name}.py":
                found[name].add(where)
    return found


def test_every_public_name_is_defined_once() -> None:
    found = places()
    assert len(found) > 1000, "the package was not read"
    assert {name: where for name, where in found.items() if len(where) > 1} == {}
