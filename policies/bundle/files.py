"""Proof that a bundle's files are the ones its manifest names. Nothing is parsed before it is proven."""

import hashlib
from pathlib import Path
from typing import BinaryIO

from cachesmith.policies.bundle.manifest import FileEntry, Manifest, SegmentEntry
from cachesmith.policies.bundle.onnx_weights import locations
from cachesmith.policies.errors import EngineError

CHUNK = 1 << 22
REMEDY = "copy the whole bundle again or export it anew"


def verify(folder: Path, manifest: Manifest) -> None:
    """Check size and hash of every file, and that graphs read no other; raise `EngineError` naming the first fault."""
    for segment in manifest.segments:
        for entry in segment.files:
            with _opened(folder, entry) as file:
                _compare(entry, _digest(file))
        _check_weights(folder, segment)
    named = {entry.name for segment in manifest.segments for entry in segment.files}
    for stray in sorted(path.name for path in folder.glob("*.data") if path.name not in named):
        raise EngineError(f"{stray[:200]!r} in {folder} is not in the manifest; delete it, or {REMEDY}")


def read_verified(folder: Path, entry: FileEntry) -> bytes:
    """Return a file's content, proven to be what was exported. The bytes are read once, so they cannot change after."""
    with _opened(folder, entry) as file:
        data = file.read(entry.size + 1)
    _compare(entry, hashlib.sha256(data).hexdigest())
    return data


def describe_file(path: Path) -> FileEntry:
    """Return name, size and sha256 of a file."""
    with path.open("rb") as file:
        return FileEntry(name=path.name, size=path.stat().st_size, sha256=_digest(file))


def _check_weights(folder: Path, segment: SegmentEntry) -> None:
    """A runtime follows the names inside a graph, whatever the manifest lists."""
    listed = set() if segment.data is None else {segment.data.name}
    for other in sorted(locations(read_verified(folder, segment.onnx)) - listed):
        raise EngineError(
            f"{segment.onnx.name} reads its weights from {other[:200]!r}, which the manifest does not list for it; "
            f"{REMEDY}"
        )


def _opened(folder: Path, entry: FileEntry) -> BinaryIO:
    path = folder / entry.name
    if path.is_symlink() or path.parent != folder:
        raise EngineError(f"{entry.name} in {folder} is a link; a bundle holds plain files only: {REMEDY}")
    if not path.is_file():
        raise EngineError(f"{entry.name} is missing from the bundle {folder}; {REMEDY}")
    size = path.stat().st_size
    if size != entry.size:
        raise EngineError(f"{entry.name} has {size:,} bytes, the manifest says {entry.size:,}; {REMEDY}")
    return path.open("rb")


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _compare(entry: FileEntry, found: str) -> None:
    if found != entry.sha256:
        raise EngineError(
            f"{entry.name} has sha256 {found[:12]}…, the manifest says {entry.sha256[:12]}…: it is not the file "
            f"that was exported, and was not opened; {REMEDY}"
        )
