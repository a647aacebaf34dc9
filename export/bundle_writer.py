"""Write a bundle's folder so that it is valid at every moment: new files first, the manifest last, old files then."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from cachesmith.policies import EngineError
from cachesmith.policies.bundle.files import describe_file, verify
from cachesmith.policies.bundle.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    SegmentEntry,
    encode_manifest,
    read_manifest,
)
from cachesmith.policies.file.atomic import write_atomically

PART = ".part-"
LEFTOVER = re.compile(rf"{re.escape(PART)}[0-9a-f]{{8}}|\.{re.escape(MANIFEST)}\.[0-9a-f]{{8}}\.part")
"""What only an export that is under way, or was killed, has in its folder."""
MADE = re.compile(
    r"(blocks-\d{3,}-\d{3,}|block-\d{3,}-[A-Za-z0-9_.]+)-[0-9a-f]{12}(-[0-9a-f]{8}\.onnx|\.onnx(\.data)?|\.engine)"
)
"""Graphs, weights and engines by the names of `Part`, with digests: nothing else in the folder is ours to delete."""


@contextmanager
def workshop(folder: Path) -> Iterator[Path]:
    """Give a temporary folder inside the bundle's; it is gone afterwards, and so are those of killed exports."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MANIFEST).exists() and not all(_is_ours(path) for path in folder.iterdir()):
        raise EngineError(f"{folder} holds other files; give a new or empty folder, or an older bundle")
    _sweep(folder)
    work = folder / f"{PART}{uuid4().hex[:8]}"
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def earlier(folder: Path) -> dict[str, SegmentEntry]:
    """Segments by name of a bundle that is already there and whose files are intact; nothing otherwise."""
    try:
        manifest = read_manifest(folder)
        verify(folder, manifest)
    except EngineError:
        return {}
    return {entry.name: entry for entry in manifest.segments}


def take(work: Path, name: str) -> FileEntry | None:
    """Describe a file made in the workshop; None when it was not made."""
    return describe_file(work / name) if (work / name).exists() else None


def publish(folder: Path, work: Path, manifest: Manifest) -> None:
    """Move the workshop's files into the bundle, then its manifest, then delete what no segment names."""
    for made in sorted(work.iterdir()):
        made.replace(folder / made.name)
    write_atomically(folder / MANIFEST, encode_manifest(manifest))
    _sweep(folder, keep=work)


def _sweep(folder: Path, keep: Path | None = None) -> None:
    """Delete what killed exports left and, where the manifest can be read, files of ours that it does not name."""
    try:
        named = {entry.name for s in read_manifest(folder).segments for entry in s.files}
    except EngineError:
        named = {path.name for path in folder.iterdir() if not LEFTOVER.fullmatch(path.name)}
    for path in folder.iterdir():
        if path.name in named or path == keep or not _is_ours(path):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _is_ours(path: Path) -> bool:
    """Whether an export made it, by its name; the manifest is not meant."""
    return bool(LEFTOVER.fullmatch(path.name) or (MADE.fullmatch(path.name) and path.is_file()))
