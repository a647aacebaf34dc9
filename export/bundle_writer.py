"""Write a bundle's folder so that it is valid at every moment: new files first, the manifest last, old files then."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from cachesmith.policies import EngineError
from cachesmith.policies.bundle import (
    MANIFEST,
    FileEntry,
    Manifest,
    SegmentEntry,
    encode_manifest,
    read_manifest,
)
from cachesmith.policies.bundle_files import describe_file, verify

PART = ".part-"


@contextmanager
def workshop(folder: Path) -> Iterator[Path]:
    """Give a temporary folder inside the bundle's; it is gone afterwards, and so are those of killed exports."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not (folder / MANIFEST).exists() and not _only_parts(folder):
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
    part = folder / f"{PART}{MANIFEST}"
    part.write_bytes(encode_manifest(manifest))
    part.replace(folder / MANIFEST)
    _sweep(folder, keep=work)


def _sweep(folder: Path, keep: Path | None = None) -> None:
    """Delete leftovers: of killed exports, and files that look like ours and belong to no segment."""
    try:
        named = {entry.name for s in read_manifest(folder).segments for entry in s.files} | {MANIFEST}
    except EngineError:
        named = {path.name for path in folder.iterdir() if not path.name.startswith(PART)}
    for path in folder.iterdir():
        if path.name in named or path == keep:
            continue
        if path.name.startswith(PART) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith((PART, "block")) and path.suffix in (".onnx", ".data", ".engine", ".json"):
            path.unlink()


def _only_parts(folder: Path) -> bool:
    return all(path.name.startswith((PART, "block")) for path in folder.iterdir())
