"""Proof that a bundle's files are the ones its manifest names. Nothing is parsed before it is proven."""

import errno
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cachesmith.files import open_plain
from cachesmith.policies.bundle.manifest import FileEntry, Manifest, SegmentEntry
from cachesmith.policies.bundle.onnx_graph import locations
from cachesmith.policies.errors import EngineError
from cachesmith.policies.file.foreign import LONGEST, foreign

_CHUNK = 1 << 22
_REMEDY = "copy the whole bundle again or export it anew"


@dataclass(frozen=True)
class Graph:
    """A segment's ONNX graph and, by the name the graph knows it by, the file of its weights: proven bytes."""

    onnx: bytes
    data: bytes | None


def verify(folder: Path, manifest: Manifest) -> None:
    """Check size and hash of every file, and that graphs read no other; raise `EngineError` naming the first fault."""
    for segment in manifest.segments:
        verify_segment(folder, segment)


def verify_segment(folder: Path, segment: SegmentEntry) -> None:
    """As `verify`, for one segment."""
    for entry in segment.files:
        with _opened(folder, entry) as file:
            _compare(entry, _digest(file))
    _check_graph(segment, read_verified(folder, segment.onnx))


def read_verified(folder: Path, entry: FileEntry) -> bytes:
    """Return a file's content, proven to be what was exported. It is read once: what is proven is what is used."""
    _check_memory(entry)
    with _opened(folder, entry) as file:
        data = file.read(entry.size + 1)
    _compare(entry, hashlib.sha256(data).hexdigest())
    return data


def read_graph(folder: Path, segment: SegmentEntry) -> Graph:
    """Return a segment's graph and weights as `read_verified` does; raise `EngineError` if it reads other files."""
    onnx = read_verified(folder, segment.onnx)
    _check_graph(segment, onnx)
    return Graph(onnx, None if segment.data is None else read_verified(folder, segment.data))


def describe_file(path: Path) -> FileEntry:
    """Return name, size and sha256 of a file."""
    with path.open("rb") as file:
        return FileEntry(name=path.name, size=path.stat().st_size, sha256=_digest(file))


def _check_graph(segment: SegmentEntry, onnx: bytes) -> None:
    """A runtime does what is inside a graph, whatever the manifest lists."""
    listed = set() if segment.data is None else {segment.data.name}
    for other in sorted(locations(onnx) - listed):
        raise EngineError(
            f"{segment.onnx.name} reads its weights from {other[:200]!r}, which the manifest does not list for it; "
            f"{_REMEDY}"
        )


def _opened(folder: Path, entry: FileEntry) -> BinaryIO:
    path = folder / entry.name
    try:
        file = open_plain(path, follow=False)
    except FileNotFoundError:
        raise EngineError(f"{entry.name} is missing from the bundle {folder}; {_REMEDY}") from None
    except OSError as error:
        said = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise EngineError(
            f"cannot read {entry.name} in {folder}: {said}; a bundle holds plain files only: {_REMEDY}"
        ) from None
    if (size := os.fstat(file.fileno()).st_size) != entry.size:
        with file:
            said = foreign(file.read(LONGEST)) if size < entry.size else None
        raise EngineError(
            f"{entry.name} has {size:,} bytes, the manifest says {entry.size:,}; {said or _REMEDY}"
        )
    return file


def _check_memory(entry: FileEntry) -> None:
    """Reading more than there is would have the system end this process, or another."""
    if not hasattr(os, "sysconf"):
        return
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if entry.size > present:
        raise EngineError(
            f"{entry.name} takes {entry.size:,} bytes, this machine has {present:,} of memory; export with a smaller "
            "max_engine_gib, or load it on a larger machine"
        )


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _compare(entry: FileEntry, found: str) -> None:
    if found != entry.sha256:
        raise EngineError(
            f"{entry.name} has sha256 {found[:12]}…, the manifest says {entry.sha256[:12]}…: it is not the file "
            f"that was exported, and was not opened; {_REMEDY}"
        )
