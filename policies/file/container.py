"""The safetensors container: bytes to document text and arrays, nothing trusted on the way.

Written here rather than by the library, whose order of metadata keys changes from call to call: the same policy must
give the same bytes. Read here, since the library holds every array twice.
"""

import json
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cachesmith.policies.base import Arrays
from cachesmith.policies.errors import PolicyError
from cachesmith.policies.file.foreign import LONGEST, foreign
from cachesmith.policies.file.strict_json import parse_object
from cachesmith.policies.file.tensor_entry import SAFETENSORS_DTYPES, Entry, check_entry

MAX_HEADER = 2**20
"""Bytes of the header, which holds the document: those of the committed policies take 15 KB."""
MAX_FILE = 2**30 + MAX_HEADER + 8
DOCUMENT, POLICY_ID = "cachesmith", "policy_id"
METADATA = "__metadata__"


class Contents(NamedTuple):
    """What a policy file holds, before any of it is interpreted."""

    document: str
    policy_id: str
    arrays: Arrays


def pack(contents: Contents) -> bytes:
    """Return the bytes of a safetensors file: equal contents give equal bytes."""
    entries: dict[str, Any] = {METADATA: {DOCUMENT: contents.document, POLICY_ID: contents.policy_id}}
    parts: list[bytes] = []
    end = 0
    for name, array in sorted(contents.arrays.items()):
        start, end = end, end + array.nbytes
        entries[name] = {
            "dtype": SAFETENSORS_DTYPES[str(array.dtype)],
            "shape": array.shape,
            "data_offsets": (start, end),
        }
        parts.append(np.ascontiguousarray(array).tobytes())
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    _check_header_size(len(header))
    return b"".join([len(header).to_bytes(8, "little"), header, *parts])


class Header(NamedTuple):
    """What stands before the arrays: metadata, dtype, shape and place of every array, and where the first begins."""

    metadata: dict[str, str]
    entries: dict[str, Entry]
    start: int


def unpack(header: Header, body: bytearray) -> Contents:
    """Return the contents of a file whose `body`, all that follows the header, its arrays then lie in."""
    arrays = {name: _array(body, entry) for name, entry in header.entries.items()}
    return Contents(header.metadata[DOCUMENT], header.metadata[POLICY_ID], arrays)


def read_header(beginning: bytes, file_size: int) -> Header:
    """Return the header of a file that begins like this, by up to 8 + `MAX_HEADER` bytes, or raise `PolicyError`."""
    start = 8 + header_size(beginning[:LONGEST], file_size)
    header = parse_object(beginning[8:start], "the header of the file")
    metadata = _metadata(header.pop(METADATA, None))
    entries = {name: check_entry(name, entry, file_size - start) for name, entry in header.items()}
    _check_places(entries, file_size - start)
    return Header(metadata, entries, start)


def header_size(prefix: bytes, file_size: int) -> int:
    """Return the header's length from the file's first `LONGEST` bytes, or raise `PolicyError`."""
    if file_size == 0:
        raise PolicyError("the file is empty; it was not copied or written to its end: copy it again")
    if (said := foreign(prefix)) is not None and int.from_bytes(prefix[:8], "little") > MAX_HEADER:
        raise PolicyError(said)
    if file_size > MAX_FILE:
        raise PolicyError(
            f"the file has {file_size:,} bytes, the limit is {MAX_FILE:,}; this is not a policy file"
        )
    size = int.from_bytes(prefix[:8], "little")
    if len(prefix) >= 8:
        _check_header_size(size)
    if len(prefix) < 8 or 8 + size > file_size:
        raise PolicyError(
            f"the file ends after {file_size:,} bytes, before its header does; it was cut: copy it again"
        )
    return size


def _check_header_size(size: int) -> None:
    if size > MAX_HEADER:
        raise PolicyError(
            f"the header takes {size:,} bytes, the limit is {MAX_HEADER:,}; a policy's takes some thousands: "
            "this is another file, or give the policy fewer profiles, overrides and seeds"
        )


def _metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not {DOCUMENT, POLICY_ID} <= set(metadata):
        raise PolicyError(
            f"the header has no {DOCUMENT!r} and {POLICY_ID!r}; this is not a policy file of cachesmith"
        )
    unknown = sorted(set(metadata) - {DOCUMENT, POLICY_ID})
    if unknown:
        raise PolicyError(
            f"the header's metadata holds {unknown[0][:80]!r}, which cachesmith does not write; remove it"
        )
    # ASCII is what we write; it also keeps out lone surrogates, which no encoder takes
    if not all(isinstance(value, str) and value.isascii() for value in metadata.values()):
        raise PolicyError("the header's metadata must be ASCII text; the file is damaged: copy it again")
    return metadata


def _check_places(entries: dict[str, Entry], room: int) -> None:
    """The arrays lie one after another and fill the file."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            raise PolicyError(
                f"array {name!r} begins at byte {entry.start}, the one before ends at {end}; the file is damaged"
            )
        end = entry.stop
    if end != room:
        raise PolicyError(f"the arrays end at byte {end} of {room}; the file is damaged: copy it again")


def _array(body: bytearray, entry: Entry) -> NDArray[np.generic]:
    count = (entry.stop - entry.start) // 4
    return np.frombuffer(body, entry.dtype, count, entry.start).reshape(entry.shape)
