"""Where commands print: results on stdout, everything else on stderr."""

import json
import math
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from cachesmith.files import replacing
from cachesmith.progress import is_quiet

_WIDE = 160
"""Columns assumed where stdout is no terminal, so that a table in a log is whole."""


def results() -> Console:
    """Return the console for results."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDE)


def errors() -> Console:
    """Return the console for errors and warnings."""
    return Console(stderr=True)


def say(text: str) -> None:
    """Print a line of results as it is."""
    results().print(text, markup=False, soft_wrap=True)


def note(text: str) -> None:
    """Print what is good to know on stderr, unless the user wants no notes."""
    if not is_quiet():
        errors().print(f"note: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print a value as indented JSON on stdout; numbers that JSON lacks (NaN, infinity) become null."""
    typer.echo(json.dumps(_finite(value), indent=2, allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_picture(path: Path, picture: Any) -> None:
    """Save a PIL picture whole or not at all, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        picture.save(part)


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(name): _finite(each) for name, each in value.items()}
        case list() | tuple():
            return [_finite(each) for each in value]
    return value
