"""Files to write, checked before any work is done: the name, the folder, what is there already."""

import os
import tempfile
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

from cachesmith.policies import SUFFIX, CachesmithError

NAME_BYTES = 255
"""Longest name of a file, where the system does not say."""


def check_file(path: Path, option: str, force: bool = False) -> None:
    """Raise `CachesmithError` if no file can be written there, or if one is there and not to be overwritten."""
    _check_name(path, option)
    if path.is_dir():
        raise CachesmithError(f"{path} is a folder; change {option}")
    if path.is_file() and not force:
        raise CachesmithError(f"{path} exists; give --force to overwrite it, or change {option}")
    if path.exists() and not path.is_file():
        return  # a device or a pipe
    _check_writable(path.resolve().parent, path, option)


def check_folder(path: Path, option: str, files: Iterable[str] = (), force: bool = False) -> None:
    """Raise `CachesmithError` if no files can be written into this folder, whether it exists or not.

    files: names of those that will be; one that is there is not to be overwritten unless `force`.
    """
    _check_name(path, option)
    if path.exists() and not path.is_dir():
        raise CachesmithError(f"{path} is no folder; change {option}")
    for name in files:
        check_file(path / name, option, force)
    _check_writable(path.resolve(), path, option)


def check_policy_file(out: Path, force: bool = False) -> None:
    """Raise `CachesmithError` before any work is done if no policy can be saved under this name."""
    if not out.name.endswith(SUFFIX) or out.name == SUFFIX:
        raise CachesmithError(f"a policy file's name ends in {SUFFIX}, got {out.name!r}; change --out")
    check_file(out, "--out", force)


def check_picture(path: Path, option: str, force: bool = False) -> None:
    """Raise `CachesmithError` before any work is done if no picture can be saved under this name."""
    check_picture_format(path)
    check_file(path, option, force)


def check_picture_format(path: Path) -> None:
    """Raise `CachesmithError` where Pillow cannot write pictures of this ending."""
    from PIL import Image

    try:
        Image.new("RGB", (1, 1)).save(BytesIO(), Image.registered_extensions()[path.suffix.lower()])
    except Exception:  # unknown endings, formats that are only read, formats whose own library is missing
        raise CachesmithError(
            f"cannot save a picture as {path.name!r}; end its name in .png, .jpg or .webp"
        ) from None


def _check_name(path: Path, option: str) -> None:
    for part in path.parts:
        if len(os.fsencode(part)) > NAME_BYTES:
            raise CachesmithError(
                f"{path} has a name of {len(os.fsencode(part))} bytes, {NAME_BYTES} are the most; change {option}"
            )


def _check_writable(folder: Path, path: Path, option: str) -> None:
    """Try the nearest folder that exists: permissions alone do not tell of disks that are read-only or full."""
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise CachesmithError(f"cannot write {path}: {folder} is no folder; change {option}")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CachesmithError(f"cannot write {path}: {folder}: {error.strerror}; change {option}") from None
