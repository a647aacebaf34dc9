"""Files: written whole or not at all, read only if they are plain ones, one writer a folder. Imports nothing heavy."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

try:
    import fcntl
except ImportError:  # Windows has no lock on folders
    fcntl = None  # type: ignore[assignment]

STEM, SUFFIX = 40, 16
"""Letters of a file's name that its temporary one has: 224 bytes at most, and a name may have 255."""


class FolderInUseError(Exception):
    """Another process holds the folder."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path in the same folder, with the same ending, whose file takes the place of `path` afterwards.

    It is on the disk when the block is left. If the block fails, `path` stays as it was and nothing is left beside it.
    A link is followed. What is no plain file, such as /dev/stdout, is written in place. An `OSError` names `path`.
    """
    path = _target(path)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        yield path
        return
    suffix = path.suffix if len(path.suffix) <= SUFFIX else ""
    part = path.with_name(f".{path.stem[:STEM]}.{uuid4().hex[:8]}.part{suffix}")
    try:
        yield part
        move(part, path)
    except OSError as error:
        if error.filename not in (None, str(part)) or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with suppress(OSError):
            part.unlink()


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write or replace `path`; where that fails (`OSError`), it is as it was, and nothing is left beside it."""
    with replacing(path) as part:
        part.write_bytes(data)


def move(part: Path, path: Path) -> None:
    """Put a finished file in the place of `path`, so that a power cut leaves one of both, and whole."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    # the folder's list of names is a file, too; not every system can open it
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def open_plain(path: Path, *, follow: bool = True) -> BinaryIO:
    """Open a plain file to read; raise `OSError` for a folder, pipe or device, which may block or never end.

    follow: whether `path` may be a link to one.
    """
    _require_plain(path.stat() if follow else path.lstat(), path)
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags | (0 if follow else getattr(os, "O_NOFOLLOW", 0)))
    try:
        # what lies there may have been replaced in between
        _require_plain(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold `folder`, which must exist, until the block is left or the process ends, however it ends.

    Raises `FolderInUseError` where another process holds it. Without POSIX locks (Windows) nothing is held.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise BlockingIOError
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        raise FolderInUseError(str(folder)) from None
    try:
        yield
    finally:
        os.close(descriptor)


def drop_torn_lines(path: Path) -> int:
    """Cut a file of JSON lines after its last whole one before the first that is not; return the bytes cut.

    A full disk, a quota or a power cut leaves half a line, and what is appended to it later is lost with it.
    """
    if not path.is_file():
        return 0
    with path.open("rb+") as file:
        whole = 0
        for line in file:
            if not line.endswith(b"\n") or not _is_json(line):
                break
            whole += len(line)
        torn = file.seek(0, os.SEEK_END) - whole
        if torn:
            file.truncate(whole)
    return torn


def _target(path: Path) -> Path:
    """Where a link leads, but for those of the system, whose files are open already."""
    if not path.is_symlink() or path.absolute().parts[1:2] in (("dev",), ("proc",)):
        return path
    return Path(os.path.realpath(path))


def _require_plain(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = "a link" if stat.S_ISLNK(found.st_mode) else "not a regular file"
        raise OSError(0, f"it is {kind}", str(path))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
