"""Ways to damage a file or to lie in one, drawn from a seeded generator: the same seed gives the same files."""

import copy
import json
from random import Random
from typing import Any

NUMBERS: list[Any] = [
    float("nan"),
    float("inf"),
    -float("inf"),
    1e308,
    5e-324,
    -0.0,
    0.5,
    -1,
    0,
    1,
    2,
    3,
    2**31,
    2**32,
]
TEXTS = [
    "",
    "C",
    "CFFFFFFF",
    "x" * 500,
    "../x",
    "/etc/passwd",
    ".",
    "a\0b",
    "\ud800",
    "ü",
    "\u202e",
    "nan",
    "\n\x1b[2J",
]
WORDS = ["interval", "float16", "bool", "batch", "int64", "weights", "hidden_states", "tensorrt"]
OTHERS: list[Any] = [
    2**63,
    10**400,
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    [1, "a"],
    {"kind": "fitted"},
    {"": 0},
]
ODD = [*NUMBERS, *TEXTS, *WORDS, *OTHERS]
KEYS = ["kind", "order", "x", "../x", "", "a b", "a\n\x1b[2J", "default", "module", "data", "engine"]
BEGINNINGS = [
    b"version https://git-lfs.github.com/spec/v1\n",
    b"<!DOCTYPE html>",
    b"\x1f\x8b\x08",
    b"PK\x03\x04",
    b"{}",
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [place for key in keys for place in [(value, key), *places(value[key])]]


def edit(raw: Any, draw: Random) -> None:
    """Delete, replace or insert something somewhere."""
    found = places(raw)
    if not found:
        return
    (inside, key), (other, other_key) = draw.choice(found), draw.choice(found)
    odd = copy.deepcopy(draw.choice([*ODD, other[other_key]]))
    match draw.choice(["delete", "replace", "replace", "insert"]):
        case "delete":
            del inside[key]
        case "insert" if isinstance(inside, list):
            inside.insert(key, odd)
        case "insert":
            inside[draw.choice(KEYS)] = odd
        case _:
            inside[key] = odd


def edited(raw: Any, draw: Random) -> str:
    """The JSON text of `raw` after one to three edits."""
    raw = json.loads(json.dumps(raw))
    for _ in range(draw.randint(1, 3)):
        edit(raw, draw)
    return json.dumps(raw, sort_keys=True, separators=(",", ":"))


def damaged(data: bytes, draw: Random) -> bytes:
    """The bytes flipped, cut, spliced, doubled, filled or replaced."""
    file, place = bytearray(data), draw.randrange(len(data))
    stop = min(len(data), place + draw.choice([1, 8, 64, 1024]))
    match draw.randrange(7):
        case 0:
            for _ in range(draw.randint(1, 4)):
                file[draw.randrange(len(file))] ^= 1 << draw.randrange(8)
        case 1:
            del file[place:]
        case 2:
            del file[place:stop]
        case 3:
            file[place:place] = file[place:stop]
        case 4:
            file[place:stop] = bytes(stop - place)
        case 5:
            file[place:stop] = draw.randbytes(draw.randint(0, 20))
        case _:
            file[: draw.choice([0, 8, place])] = draw.choice(BEGINNINGS)
    return bytes(file)
