"""Files that appear whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path in the same folder, with the same ending, whose file takes the place of `path` afterwards.

    If the block fails, `path` stays as it was. What is no plain file (a link, /dev/stdout) is written in place.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        yield path
        return
    # of its own, short name: one made from a long name would be too long
    part = path.with_name(f".{uuid4().hex[:8]}.part{path.suffix}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
