"""What a safetensors header may say about one array."""

import re
from math import prod
from typing import NamedTuple

from cachesmith.policies.base import TENSOR_PATTERN
from cachesmith.policies.errors import PolicyError

SAFETENSORS_DTYPES = {"float32": "F32", "int32": "I32"}
"""Dtypes a policy stores, by their safetensors names; both take 4 bytes."""

MAX_SIDE = 2**31
MAX_AXIS = 2**16
"""Entries along an axis: units, steps, channels, ranks and groups are some thousands."""


class Entry(NamedTuple):
    """One array: `dtype` as numpy calls it, and its place in bytes after the header."""

    dtype: str
    shape: list[int]
    start: int
    stop: int


def check_entry(name: str, entry: object, room: int) -> Entry:
    """Raise `PolicyError` unless name, dtype, shape and place agree; `room`: the bytes there are."""
    if not re.fullmatch(TENSOR_PATTERN, name) or len(name) > 120:
        raise PolicyError(
            f"the array name {name[:80]!r} is not allowed; use letters, digits, _ . - and up to 3 slashes"
        )
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise PolicyError(
            f"array {name!r} needs dtype, shape and data_offsets in the header; the file is damaged"
        )
    if entry["dtype"] not in SAFETENSORS_DTYPES.values():
        raise PolicyError(
            f"array {name!r} has dtype {str(entry['dtype'])[:20]!r}; a policy stores only F32 and I32"
        )
    shape, offsets = _sizes(name, entry["shape"]), _sizes(name, entry["data_offsets"])
    _check_place(name, shape, offsets, room)
    dtype = next(ours for ours, theirs in SAFETENSORS_DTYPES.items() if theirs == entry["dtype"])
    return Entry(dtype, shape, *offsets)


def _sizes(name: str, value: object) -> list[int]:
    if (
        isinstance(value, list)
        and len(value) <= 8
        and all(type(n) is int and 0 <= n < MAX_SIDE for n in value)
    ):
        return value
    raise PolicyError(
        f"array {name!r} has a shape or data_offsets that is no list of sizes; the file is damaged"
    )


def _check_place(name: str, shape: list[int], offsets: list[int], room: int) -> None:
    if max(shape, default=0) > MAX_AXIS:
        raise PolicyError(f"array {name!r} has shape {shape}, the limit along an axis is {MAX_AXIS:,}")
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= room:
        raise PolicyError(
            f"array {name!r} lies at {offsets} of {room} bytes; the file was cut or damaged: copy it again"
        )
    size = offsets[1] - offsets[0]
    if prod(shape) * 4 != size:
        raise PolicyError(
            f"array {name!r} of shape {shape} needs {prod(shape) * 4} bytes, has {size}; the file is damaged"
        )
