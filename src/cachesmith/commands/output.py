"""Where commands print: results on stdout, everything else on stderr."""

import json
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from cachesmith.files import replacing
from cachesmith.policies import SUFFIX, CachesmithError, PolicyError

WIDE = 160
"""Columns assumed where stdout is no terminal, so that a table in a log is whole."""


def results() -> Console:
    """Return the console for results."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDE)


def errors() -> Console:
    """Return the console for errors and warnings."""
    return Console(stderr=True)


def print_json(value: Any) -> None:
    """Print a value as indented JSON on stdout."""
    typer.echo(json.dumps(value, indent=2))


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def check_policy_file(out: Path) -> None:
    """Raise `CachesmithError` before any work is done if no policy can be saved under this name."""
    if not out.name.endswith(SUFFIX) or out.name == SUFFIX:
        raise CachesmithError(f"a policy file's name ends in {SUFFIX}, got {out.name!r}; change --out")
    if out.is_dir():
        raise CachesmithError(f"{out} is a folder; change --out")


def check_picture(path: Path) -> None:
    """Raise `PolicyError` before any work is done if pictures cannot be saved under this name."""
    from PIL import Image

    known = Image.registered_extensions()
    if path.suffix.lower() not in known:
        raise PolicyError(f"cannot save a picture as {path.name!r}; end its name in .png, .jpg or .webp")


def write_picture(path: Path, picture: Any) -> None:
    """Save a PIL picture whole or not at all, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        picture.save(part)
