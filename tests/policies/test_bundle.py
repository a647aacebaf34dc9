"""A bundle's manifest and the proof of its files: everything wrong is one `EngineError`, before anything is parsed."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from cachesmith.policies import EngineError
from cachesmith.policies.bundle.files import read_verified, verify
from cachesmith.policies.bundle.manifest import (
    LARGEST,
    MANIFEST,
    Build,
    FileEntry,
    Manifest,
    Range,
    SegmentEntry,
    TensorSpec,
    bundle_id,
    encode_manifest,
    read_manifest,
)
from cachesmith.policies.bundle.onnx_graph import locations
from cachesmith.policies.document import ModelKey


def entry_of(name: str, data: bytes) -> FileEntry:
    return FileEntry(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def segment(start: int, stop: int, files: dict[str, bytes]) -> SegmentEntry:
    stream = TensorSpec(name="hidden_states", dtype="float32", axes=("batch", "tokens", 8))
    name = f"blocks-{start:03d}-{stop:03d}"
    return SegmentEntry(
        name=name,
        start=start,
        stop=stop,
        inputs=(stream,),
        outputs=(stream.model_copy(update={"name": "hidden_states_out"}),),
        ranges={axis: Range(min=1, opt=2, max=4) for axis in ("batch", "tokens")},
        key="a" * 64,
        onnx=entry_of(f"{name}.onnx", files[f"{name}.onnx"]),
        engine=entry_of(f"{name}.engine", files[f"{name}.engine"]),
        engine_key="b" * 64,
    )


def field(number: int, content: bytes) -> bytes:
    """A protobuf field of fewer than 16384 bytes."""
    low, high = len(content) & 127, len(content) >> 7
    return bytes([number << 3 | 2, *((low | 128, high) if high else (low,))]) + content


def graph(producer: bytes, location: bytes | None = None) -> bytes:
    """An ONNX model: a producer, and perhaps one initializer whose data lies elsewhere."""
    external = b"" if location is None else field(13, field(1, b"location") + field(2, location))
    return field(2, producer) + field(7, field(5, external))


FILES = {f"blocks-{a:03d}-{a + 2:03d}.engine": f"{a} engine".encode() * 9 for a in (0, 2)}
FILES |= {f"blocks-{a:03d}-{a + 2:03d}.onnx": graph(f"{a} onnx".encode()) for a in (0, 2)}


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        target="tensorrt",
        policy_id="0" * 16,
        policy_name="test",
        model=ModelKey(pipeline="P", transformer="T", config_hash="c" * 64, blocks=4),
        dtype="float32",
        opset=20,
        versions={"cachesmith": "0.1.0"},
        segments=(segment(0, 2, FILES), segment(2, 4, FILES)),
        build=Build(version="11.4.0", gpu="NVIDIA L4", capabilities=("8.9",), level=3, flags=("TF32",)),
    )


@pytest.fixture
def folder(tmp_path: Path, manifest: Manifest) -> Path:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / MANIFEST).write_bytes(encode_manifest(manifest))
    return tmp_path


def rewrite(folder: Path, change: Any) -> None:
    raw = json.loads((folder / MANIFEST).read_text())
    change(raw)
    (folder / MANIFEST).write_text(json.dumps(raw))


def test_round_trip(folder: Path, manifest: Manifest) -> None:
    found = read_manifest(folder)
    verify(folder, found)
    assert found == manifest and bundle_id(found) == bundle_id(manifest)
    assert read_verified(folder, found.segments[0].files[0]) == FILES["blocks-000-002.onnx"]


def test_missing(folder: Path, manifest: Manifest) -> None:
    (folder / "blocks-002-004.engine").unlink()
    with pytest.raises(
        EngineError, match=r"blocks-002-004\.engine is missing .* copy the whole bundle again"
    ):
        verify(folder, manifest)


def test_truncated(folder: Path, manifest: Manifest) -> None:
    path = folder / "blocks-000-002.engine"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EngineError, match=r"has 71 bytes, the manifest says 72"):
        verify(folder, manifest)


def test_tampered(folder: Path, manifest: Manifest) -> None:
    path = folder / "blocks-000-002.engine"
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    with pytest.raises(EngineError, match="is not the file that was exported, and was not opened"):
        verify(folder, manifest)
    with pytest.raises(EngineError, match="sha256"):
        read_verified(folder, manifest.segments[0].files[-1])


def test_swapped(folder: Path, manifest: Manifest) -> None:
    a, b = folder / "blocks-000-002.engine", folder / "blocks-002-004.engine"
    first = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(first)
    with pytest.raises(EngineError, match=r"blocks-000-002\.engine has sha256"):
        verify(folder, manifest)


def test_links_are_refused(
    folder: Path, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "engine"
    path = folder / "blocks-000-002.engine"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(EngineError, match="is a link"):
        verify(folder, manifest)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/b.engine", ".hidden", "", "a\\b", "..", "a\n", "x" * 200]
)
def test_names_stay_inside_the_folder(folder: Path, name: str) -> None:
    rewrite(folder, lambda raw: raw["segments"][0]["engine"].update(name=name))
    with pytest.raises(EngineError, match=r"is not a valid manifest: segments\.0\.engine\.name"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda raw: raw.update(format=2),
            "has format '2', this cachesmith reads 1; install the cachesmith that wrote",
        ),
        (lambda raw: raw.pop("format"), "has format 'None'"),
        (lambda raw: raw.update(extra=1), "extra"),
        (lambda raw: raw.update(target="elsewhere"), "target"),
        (lambda raw: raw.update(build=None), "needs build facts"),
        (lambda raw: raw["segments"][0].update(engine=None, engine_key=None), "an engine for every segment"),
        (lambda raw: raw["segments"][0].update(start=2), "blocks 2 to 2 are no range"),
        (
            lambda raw: raw["segments"][0]["ranges"].pop("tokens"),
            "ranges are given for ['batch'], but the axes are",
        ),
        (lambda raw: raw["segments"][0]["ranges"]["batch"].update(min=9), "must ascend"),
        (
            lambda raw: raw["segments"][0]["engine"].update(name="blocks-002-004.engine"),
            "belongs to two segments",
        ),
        (lambda raw: raw["segments"][0]["onnx"].update(sha256="0"), "sha256"),
        (lambda raw: raw["segments"][0]["onnx"].update(size="12"), "size"),
        (lambda raw: raw["build"].update(flags=[3]), "flags"),
        (lambda raw: raw["build"].update(version="abc"), "build.version"),
        (lambda raw: raw["build"].update(gpu="\x1b[31mL4"), "build.gpu"),
        (lambda raw: raw["versions"].update(torch="2.1\n"), "versions.torch"),
        (lambda raw: raw["segments"][0]["inputs"][0].update(name="x[/nope]"), "segments.0.inputs.0.name"),
        (lambda raw: raw["segments"][0]["inputs"][0].update(axes=["\x1b[2J", 8]), "segments.0.inputs.0.axes"),
        (lambda raw: raw["segments"][0].update(module="a\x07"), "segments.0.module"),
        (
            lambda raw: raw["segments"][1].update(name="blocks-000-002"),
            "two segments are called blocks-000-002",
        ),
        (lambda raw: raw["segments"][1].update(start=1), "blocks-000-002 and blocks-002-004 overlap"),
        (lambda raw: raw["segments"][1].update(stop=5), "ends at block 5, the model has 4"),
        (
            lambda raw: [s.update(module="ff", start=0, stop=1) for s in raw["segments"]],
            "two segments are ff of block 0",
        ),
        (
            lambda raw: raw["segments"][0].update(engine_key=None),
            "an engine and its engine_key belong together",
        ),
        (
            lambda raw: raw["segments"][0]["outputs"][0].update(name="hidden_states"),
            "two tensors are called hidden_states",
        ),
    ],
)
def test_a_manifest_is_read_strictly(folder: Path, change: Any, message: str) -> None:
    rewrite(folder, change)
    with pytest.raises(EngineError, match=re.escape(message)):
        read_manifest(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1, "format": 1}', '{"format": 1}', "\xff"])
def test_what_is_no_manifest(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_bytes(text.encode("latin1"))
    with pytest.raises(EngineError, match="manifest"):
        read_manifest(folder)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"cannot read .*: No such file or directory; give the folder"):
        read_manifest(tmp_path)


def test_a_manifest_is_a_plain_file_of_some_size(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path, outside = folder / MANIFEST, tmp_path_factory.mktemp("outside") / MANIFEST
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(EngineError, match="it is a link; give the folder"):
        read_manifest(folder)
    path.unlink()
    path.write_bytes(b" " * (LARGEST + 1))
    with pytest.raises(EngineError, match="has more than 4,194,304 bytes and is no manifest"):
        read_manifest(folder)


@pytest.mark.parametrize("location", [b"blocks-000-002.onnx.data", b"../secret", b"/etc/passwd", b""])
def test_a_graph_reads_nothing_but_its_own_weights(folder: Path, manifest: Manifest, location: bytes) -> None:
    raw = graph(b"", location)
    first = manifest.segments[0].model_copy(update={"onnx": entry_of("blocks-000-002.onnx", raw)})
    (folder / "blocks-000-002.onnx").write_bytes(raw)
    with pytest.raises(
        EngineError, match=r"blocks-000-002\.onnx reads its weights from .* does not list for it"
    ):
        verify(folder, manifest.model_copy(update={"segments": (first, manifest.segments[1])}))


def test_a_graph_that_reads_its_own_weights(folder: Path, manifest: Manifest) -> None:
    raw, weights = graph(b"", b"a.data"), b"weights"
    files = {"onnx": entry_of("blocks-000-002.onnx", raw), "data": entry_of("a.data", weights)}
    first = manifest.segments[0].model_copy(update=files)
    (folder / "blocks-000-002.onnx").write_bytes(raw)
    (folder / "a.data").write_bytes(weights)
    verify(folder, manifest.model_copy(update={"segments": (first, manifest.segments[1])}))


def test_weights_nobody_named_are_never_opened(folder: Path, manifest: Manifest) -> None:
    """As an export that renews the bundle, or was killed, leaves them."""
    os.mkfifo(folder / "more.data")
    verify(folder, manifest)


@pytest.mark.parametrize(
    "model", [b"\x3a", b"\x3a\x05ab", b"\x0b", b"\xff" * 11, field(7, field(5, b"\x6a\x7f"))]
)
def test_what_is_no_graph(model: bytes) -> None:
    with pytest.raises(EngineError, match="the ONNX graph cannot be read"):
        locations(model)


def test_a_tag_that_a_runtime_cuts_to_another_field() -> None:
    hidden = graph(b"", b"../secret")
    place = hidden.index(7 << 3 | 2)
    tag = bytes([7 << 3 | 2 | 128, 128, 128, 128, 1 << 4])  # the same 32 bits, and one above them
    assert locations(hidden) == {"../secret"}
    with pytest.raises(EngineError, match=r"the tag 4294967354 is beyond 4294967295"):
        locations(hidden[:place] + tag + hidden[place + 1 :])


@pytest.mark.parametrize("number", [b"\x08\x00", b"\x09" + b"\0" * 8, b"\x0d" + b"\0" * 4])
def test_a_number_in_place_of_a_key_does_not_hide_it(number: bytes) -> None:
    entry = field(1, b"location") + field(2, b"../secret") + number
    assert locations(field(7, field(5, field(13, entry)))) == {"../secret"}


@pytest.mark.parametrize(
    "model",
    {
        "loop": field(7, field(1, field(5, field(6, b"")))),
        "branches": field(7, field(1, field(5, field(11, b"")))),
        "function": b"\xca\x01\x00",
        "training": b"\xa2\x01\x00",
    }.values(),
)
def test_a_graph_that_may_never_end(model: bytes) -> None:
    with pytest.raises(EngineError, match="it holds loops, branches or functions, which may never end"):
        locations(model)


def test_a_graph_of_many_small_fields() -> None:
    with pytest.raises(EngineError, match="has more than 500,000 fields"):
        locations(b"\x08\x00" * 600_000)
