"""What is written appears whole or not at all."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt

from cachesmith.calibrate.report.figures import save_figure
from cachesmith.commands.output import write_picture, write_text
from cachesmith.files import (
    FolderInUseError,
    drop_torn_lines,
    open_plain,
    replacing,
    sole_writer,
    write_atomically,
)


class Torn:
    """A picture or figure on whose writing the disk runs full."""

    def save(self, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    savefig = save


def torn_text(path: Path) -> None:
    # a lone surrogate cannot be encoded, and is met when the file is open
    write_text(path, "half" + chr(0xD800))


@pytest.mark.parametrize(
    "write",
    [torn_text, lambda p: write_picture(p, Torn()), lambda p: save_figure(Torn(), p)],  # type: ignore[arg-type]
)
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, write: Any) -> None:
    path = tmp_path / "old.png"
    path.write_text("old")
    with pytest.raises((OSError, UnicodeEncodeError)):
        write(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_new_file_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.png"
    write_text(path, "text")
    write_text(path, "other text")
    assert path.read_text() == "other text"
    save_figure(plt.figure(), path)
    assert path.read_bytes().startswith(b"\x89PNG") and list(path.parent.iterdir()) == [path]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    """As /dev/stdout is one."""
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with replacing(tmp_path / "link") as part:
        part.write_text("text")
    assert (tmp_path / "target").read_text() == "text" and (tmp_path / "link").is_symlink()


def test_long_names_are_written(tmp_path: Path) -> None:
    for name in ("ü" * 125 + ".png", "n" * 251 + ".png", "a." + "b" * 250):
        write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"
    assert len(list(tmp_path.iterdir())) == 3


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "a.png"
    with pytest.raises(OSError) as caught, replacing(path) as part:
        part.write_text("text")
    assert caught.value.filename == str(path)


def test_what_is_written_is_on_the_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[bool] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        kinds.append(stat.S_ISREG(os.fstat(descriptor).st_mode))
        assert (tmp_path / "a").exists() is not kinds[-1], "the file before it has its name, the folder after"
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "a", b"text")
    assert kinds == [True, False]


def test_only_plain_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for path, follow in ((tmp_path / "fifo", True), (tmp_path, True), (tmp_path / "link", False)):
        with pytest.raises(OSError, match="it is"):
            open_plain(path, follow=follow)
    with open_plain(tmp_path / "link") as file:
        assert file.read() == b"text"


def test_a_pipe_put_in_place_of_a_file_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.touch()
    plain = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "stat", lambda *_, **__: plain)
    with pytest.raises(OSError, match="not a regular file"):
        open_plain(path)


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    with sole_writer(tmp_path), pytest.raises(FolderInUseError), sole_writer(tmp_path):
        pass
    with sole_writer(tmp_path):
        pass


@pytest.mark.parametrize("tail", [b'{"b": 2', b'{"b": 2\n', b"\0\0\0\0", b'{"b": 2{"c": 3}\n{"d": 4}\n'])
def test_half_a_line_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b'{"a": 1}\n' + tail)
    assert drop_torn_lines(path) == len(tail)
    assert path.read_bytes() == b'{"a": 1}\n' and drop_torn_lines(path) == 0
    assert drop_torn_lines(tmp_path / "none") == 0
