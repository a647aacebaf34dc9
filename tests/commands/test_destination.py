"""Files that cannot be written are told of before any work is done."""

from pathlib import Path
from typing import Any

import pytest
from tests.commands.shop import Cli, Shop, fails, succeeds

from cachesmith.commands.shared.destination import check_file, check_folder, check_picture, check_policy_file
from cachesmith.commands.shared.saving import check_files, file_names
from cachesmith.policies import CachesmithError

READ_ONLY_FORMATS = ("psd", "cur", "fits", "hdf", "wmf", "bufr", "grib", "fli", "xyz", "")


@pytest.mark.parametrize("ending", READ_ONLY_FORMATS)
def test_formats_that_cannot_be_written(tmp_path: Path, ending: str) -> None:
    with pytest.raises(CachesmithError, match=r"cannot save a picture as .* end its name in \.png"):
        check_picture(tmp_path / f"x.{ending}", "--out")


@pytest.mark.parametrize("ending", ["png", "PNG", "jpg", "jpeg", "webp", "tiff", "gif", "bmp"])
def test_formats_that_can(tmp_path: Path, ending: str) -> None:
    check_picture(tmp_path / "new" / f"x.{ending}", "--out")
    assert not (tmp_path / "new").exists()


def test_a_file_that_exists_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.touch()
    with pytest.raises(CachesmithError, match=r"exists; give --force to overwrite it, or change --out"):
        check_picture(path, "--out")
    check_picture(path, "--out", force=True)
    (tmp_path / "link.png").symlink_to(path)
    with pytest.raises(CachesmithError, match="exists"):
        check_picture(tmp_path / "link.png", "--out")


def test_devices_are_written_to() -> None:
    check_file(Path("/dev/null"), "--markdown")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda f: f / "file" / "x.md", "is no folder; change --out"),
        (lambda f: f / "file" / "deeper" / "x.md", "is no folder; change --out"),
        (lambda f: f / "folder", "is a folder; change --out"),
        (lambda f: f / ("n" * 256), "has a name of 256 bytes, 255 are the most; change --out"),
        (lambda f: f / ("ä" * 128) / "x.md", "has a name of 256 bytes"),
        (lambda f: Path("/proc/nothing/x.md"), "cannot write /proc/nothing/x.md"),
        (lambda f: f / "dangling", "cannot write"),
    ],
)
def test_where_nothing_can_be_written(tmp_path: Path, make: Any, said: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("/proc/nothing/x.md")
    with pytest.raises(CachesmithError, match=said):
        check_file(make(tmp_path), "--out", force=True)


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_folder(tmp_path, "--work")
    check_folder(tmp_path / "new" / "deep", "--work")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        with pytest.raises(CachesmithError, match="change --work"):
            check_folder(path, "--work")


def test_names_of_policies(tmp_path: Path) -> None:
    check_policy_file(tmp_path / "a.policy.safetensors")
    for name in ("a.json", ".policy.safetensors"):
        with pytest.raises(CachesmithError, match=r"ends in \.policy\.safetensors"):
            check_policy_file(tmp_path / name)


def test_every_file_of_many_is_checked(tmp_path: Path) -> None:
    out = tmp_path / "p.png"
    assert [p.name for p in file_names(out, 3, separate=True)] == ["p-0.png", "p-1.png", "p-2.png"]
    assert file_names(out, 3, separate=False) == file_names(out, 1, separate=True) == [out]
    assert [p.name for p in file_names(tmp_path / "v.mp4", 2, separate=False)] == ["v-0.mp4", "v-1.mp4"]
    check_files(out, 3, True, force=False)
    (tmp_path / "p-2.png").touch()
    with pytest.raises(CachesmithError, match=r"p-2\.png exists"):
        check_files(out, 3, True, force=False)


def test_the_longest_name_is_written(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / ("n" * 251 + ".png")
    succeeds(cli("run", shop.model, "--class-label", 1, "--num-inference-steps", 2, "--out", out))
    assert [out] == list(tmp_path.iterdir())


NOWHERE = "/proc/nothing/x"


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--class-label", 1, "--out", f"{NOWHERE}.png"),
        ("bench", "--against", "fora", "--markdown", f"{NOWHERE}.md"),
        ("bench", "--against", "fora", "--sheet", f"{NOWHERE}.png"),
        ("fit", "--method", "magcache", "--out", f"{NOWHERE}.policy.safetensors"),
        ("calibrate", "--out", f"{NOWHERE}.policy.safetensors", "--work", "."),
        ("calibrate", "--out", "x.policy.safetensors", "--work", NOWHERE),
        ("calibrate", "--out", "x.policy.safetensors", "--report", NOWHERE),
        ("export", "--out", NOWHERE),
    ],
)
def test_every_command_looks_before_it_loads(
    cli: Cli, shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cachesmith.commands.pipeline._load", load)
    command, *rest = arguments
    prompts = () if command in ("run", "export") else ("--prompts", shop.prompts)
    policy = ("--policy", shop.policy) if command == "export" else ()
    fails(cli(command, shop.model, *rest, *prompts, *policy), "cannot write /proc/nothing")


def test_convert_keeps_what_is_there(cli: Cli, shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "c.yaml"
    out.write_text("mine")
    arguments = ("convert", shop.policy, "--to", "cache-dit", "--order", 1, "--out", out)
    fails(cli(*arguments), "exists; give --force")
    assert out.read_text() == "mine"
    succeeds(cli(*arguments, "--force"))
    assert out.read_text() != "mine"
