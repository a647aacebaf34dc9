"""Files that list what to sample: one prompt a line, as plain text or as a JSON object of pipeline arguments."""

import codecs
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cachesmith.policies import PolicyError
from cachesmith.sampling.requests.files import is_file_name, open_file
from cachesmith.sampling.requests.request import FileRow, Prompt

OBJECT_LINES = (".jsonl", ".ndjson", ".json")
"""Endings of files in which a line that begins with a brace or bracket is JSON, never text."""

_OBJECT = re.compile(r"""\{\s*(["'}]|\w+\s*:(?!:)|$)""")
"""How a JSON object begins, or what was meant as one; other braces are letters of a text."""

_TEXT = re.compile(r"prompt(_\d+)?$")
"""Arguments whose text is a prompt, however it ends; the others may name files."""

_LONGEST = 100
"""Characters of a reason that are passed on."""


def read_prompts(path: Path) -> list[Prompt]:
    """Read one prompt a line: plain text, or a JSON object of pipeline arguments.

    A text that ends in .png, .jpg, .mp4, .npy or .safetensors is the path of a file, relative to this one, unless it
    is a prompt. Lines end at line feeds alone: other Unicode separators are letters. Raises `PolicyError`, which names
    the line.
    """
    prompts: list[Prompt] = []
    for number, line in enumerate(_lines(path), 1):
        where = f"{path}, line {number}"
        try:
            text = line.decode().strip()
            if text:
                prompts.append(_prompt(text, path, where))
        except UnicodeDecodeError:
            raise PolicyError(f"cannot read prompts from {where}: it is no UTF-8; save it as UTF-8") from None
    if not prompts:
        raise PolicyError(f"{path} holds no prompts; give one prompt or JSON object a line")
    return prompts


def _lines(path: Path) -> list[bytes]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PolicyError(
            f"cannot read prompts from {path}: {error.strerror or error}; give a file with one prompt or JSON "
            "object a line"
        ) from None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise PolicyError(f"cannot read prompts from {path}: it is UTF-16; save it as UTF-8")
    return re.split(rb"\r\n|\n|\r", data.removeprefix(codecs.BOM_UTF8))


def _prompt(text: str, path: Path, where: str) -> Prompt:
    strict = path.suffix.lower() in OBJECT_LINES
    if not (_OBJECT.match(text) or (strict and text[0] in "{[")):
        return text
    row = FileRow(_object(text, where))
    row.where = where
    for name, value in row.items():
        row[name] = _value(name, value, path.parent, f"{where}: {name!r}")
    return row


def _object(text: str, where: str) -> dict[str, Any]:
    remedy = 'write a JSON object of pipeline arguments; for a text with braces: {"prompt": "..."}'
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_constant)
    except json.JSONDecodeError as error:
        # its own line number is always 1
        reason = f"{error.msg.lower()} at column {error.colno}"
    except (ValueError, RecursionError) as error:
        reason = str(error)[:_LONGEST]
    else:
        if isinstance(found, dict):
            return found
        reason = f"a {type(found).__name__} is no object"
    raise PolicyError(f"cannot read prompts from {where}: {reason}; {remedy}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is given twice")
    return dict(pairs)


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _value(name: str, value: Any, folder: Path, where: str) -> Any:
    """Check a value of any depth, and open the files it names. Raises `PolicyError`."""
    for text in _texts(value):
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise PolicyError(
                f"{where} holds half of a surrogate pair, which is no letter; write the whole letter"
            )
    if isinstance(value, float) and not math.isfinite(value):
        raise PolicyError(f"{where} is too large for a number; write a finite one")
    if isinstance(value, list):
        return [_value(name, item, folder, where) for item in value]
    if isinstance(value, str) and is_file_name(value) and not _TEXT.search(name):
        try:
            return open_file(value, folder, name)
        except PolicyError as error:
            raise PolicyError(f"{where}: {error}") from None
    return value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (key, *_texts(item))
