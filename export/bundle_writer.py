"""Write a bundle's folder so that it is valid at every moment, and so that no finished file is lost.

A finished graph or engine goes straight to its place, under a name with its digest, and a record beside it says what it
is. The manifest comes last; then goes what it does not name.
"""

import errno
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from pydantic import ValidationError

from cachesmith.files import FolderInUseError, move, sole_writer, write_atomically
from cachesmith.policies import EngineError
from cachesmith.policies.bundle.files import describe_file, verify_segment
from cachesmith.policies.bundle.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    SegmentEntry,
    encode_manifest,
    read_manifest,
)

PART, RECORD = ".part-", ".segment.json"
_PARTS = r"([A-Za-z0-9_]+\.)?(blocks-\d{3,}-\d{3,}|block-\d{3,}-[A-Za-z0-9_.]+)-[0-9a-f]{12}"
"""Names of `Part`, with digests."""
_RECORDED = re.compile(rf"\.{_PARTS}{re.escape(RECORD)}")
LEFTOVER = re.compile(
    rf"{re.escape(PART)}[0-9a-f]{{8}}|\.(manifest|\.(\w+\.)?block[\w.-]+)\.[0-9a-f]{{8}}\.part\.json"
)
"""What only an export that is under way, or was killed, has in its folder."""
MADE = re.compile(rf"{_PARTS}(-[0-9a-f]{{8}}\.onnx|\.onnx(\.data)?|\.engine)")
"""Graphs, weights and engines: nothing else in the folder is ours to delete."""

UNWRITABLE = {getattr(errno, name, None) for name in (
    "ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EACCES", "EPERM", "ENOTDIR", "EEXIST", "ENAMETOOLONG",
)}  # fmt: skip
"""What a disk or its owner may say."""


@contextmanager
def workshop(folder: Path) -> Iterator[Path]:
    """Give a temporary folder inside the bundle's; it is gone afterwards, and so are those of killed exports.

    Raises `EngineError` if another export writes there, if the folder holds something else, or if the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with sole_writer(folder):
            yield from _workshop(folder)
    except FolderInUseError:
        raise EngineError(
            f"another export is writing {folder}; wait until it has ended, or give another folder"
        ) from None
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise EngineError(
            f"cannot write {error.filename or folder}: {error.strerror or error}; with that mended, the same export "
            "goes on after the last graph it finished"
        ) from error


def _workshop(folder: Path) -> Iterator[Path]:
    if not (folder / MANIFEST).exists() and not all(_is_ours(path) for path in folder.iterdir()):
        raise EngineError(f"{folder} holds other files; give a new or empty folder, or an older bundle")
    _sweep(folder, {f.name for entry in _records(folder) for f in entry.files}, _RECORDED)
    work = folder / f"{PART}{uuid4().hex[:8]}"
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def finished(folder: Path, keys: Collection[str]) -> dict[str, SegmentEntry]:
    """Segments by key, of those asked for, whose files are there and intact: of a bundle, or of a killed export."""
    try:
        published = read_manifest(folder).segments
    except EngineError:
        published = ()
    found: dict[str, SegmentEntry] = {}
    for entry in (*published, *_records(folder)):
        if entry.key in keys:
            try:
                verify_segment(folder, entry)
                found[entry.key] = entry
            except EngineError:
                continue
    return found


def keep(folder: Path, work: Path, entry: SegmentEntry) -> SegmentEntry:
    """Move what was made of a segment to its place and record it: a later export finds it, however this one ends."""
    fresh = [file.name for file in entry.files if (work / file.name).exists()]
    for name in fresh:
        move(work / name, folder / name)
    if fresh:
        record = folder / f".{entry.name}-{entry.key[:12]}{RECORD}"
        write_atomically(record, entry.model_dump_json().encode())
    return entry


def take_file(work: Path, name: str) -> FileEntry | None:
    """Describe a file made in the workshop; None when it was not made."""
    return describe_file(work / name) if (work / name).exists() else None


def publish(folder: Path, work: Path, manifest: Manifest) -> None:
    """Write the manifest, whose files are in their places, then delete what it does not name."""
    write_atomically(folder / MANIFEST, encode_manifest(manifest))
    _sweep(folder, {work.name})


def _records(folder: Path) -> list[SegmentEntry]:
    entries = []
    for path in sorted(folder.iterdir()):
        if _RECORDED.fullmatch(path.name) and path.is_file():
            try:
                entries.append(SegmentEntry.model_validate_json(path.read_bytes()))
            except ValidationError:
                continue
    return entries


def _sweep(folder: Path, kept: set[str], kind: re.Pattern[str] | None = None) -> None:
    """Delete files of ours that are neither `kept`, by name or kind, nor in the manifest, if that can be read."""
    if (folder / MANIFEST).exists():
        try:
            kept = kept | {entry.name for s in read_manifest(folder).segments for entry in s.files}
        except EngineError:
            kept = kept | {path.name for path in folder.iterdir() if not LEFTOVER.fullmatch(path.name)}
    for path in folder.iterdir():
        if path.name in kept or not _is_ours(path) or (kind is not None and kind.fullmatch(path.name)):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _is_ours(path: Path) -> bool:
    """Whether an export made it, by its name; the manifest is not meant."""
    if LEFTOVER.fullmatch(path.name):
        return True
    return path.is_file() and bool(MADE.fullmatch(path.name) or _RECORDED.fullmatch(path.name))
