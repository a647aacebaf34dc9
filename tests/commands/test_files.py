"""What is written appears whole or not at all."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt

from cachesmith.calibrate.report.figures import save
from cachesmith.commands.output import write_picture, write_text
from cachesmith.files import replacing


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
    [torn_text, lambda p: write_picture(p, Torn()), lambda p: save(Torn(), p)],  # type: ignore[arg-type]
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
    save(plt.figure(), path)
    assert path.read_bytes().startswith(b"\x89PNG") and list(path.parent.iterdir()) == [path]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    """As /dev/stdout is one."""
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with replacing(tmp_path / "link") as part:
        part.write_text("text")
    assert (tmp_path / "target").read_text() == "text" and (tmp_path / "link").is_symlink()
