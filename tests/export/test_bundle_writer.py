"""What an export deletes in the folder it writes to: what exports made, and nothing else."""

from pathlib import Path

import pytest

from cachesmith.export.bundle_writer import publish, workshop
from cachesmith.policies import EngineError, ModelKey
from cachesmith.policies.bundle.manifest import MANIFEST, FileEntry, Manifest, Range, SegmentEntry, TensorSpec

FOREIGN = (
    "block_notes.json", "blocks.data", "blocks-of-text.onnx", "block-000-thesis.engine", ".part-list",
    "blocks-000-004-0123456789ab.json", ".manifest.json.part",
)  # fmt: skip
OURS = (
    "blocks-000-004-0123456789ab-89abcdef.onnx", "blocks-000-004-0123456789ab.onnx.data",
    "block-000-img_mlp-0123456789ab-89abcdef.onnx", "block-1000-attn1-0123456789ab.engine",
    ".manifest.0123abcd.part.json", "..blocks-000-004-0123456789ab.seg.0123abcd.part.json",
)  # fmt: skip


def manifest() -> Manifest:
    stream = TensorSpec(name="x", dtype="float32", axes=("batch", 8))
    segment = SegmentEntry(
        name="blocks-000-004",
        start=0,
        stop=4,
        inputs=(stream,),
        outputs=(stream.model_copy(update={"name": "y"}),),
        ranges={"batch": Range(min=1, opt=1, max=1)},
        key="a" * 64,
        onnx=FileEntry(name="blocks-000-004-aaaaaaaaaaaa-00000000.onnx", size=1, sha256="b" * 64),
    )
    model = ModelKey(pipeline="P", transformer="T", config_hash="c" * 64, blocks=4)
    return Manifest(
        target="onnxruntime", policy_id="0" * 16, policy_name="test", model=model, dtype="float32", opset=20,
        versions={}, segments=(segment,),
    )  # fmt: skip


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_with_a_name_like_ours_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(EngineError, match="holds other files"), workshop(tmp_path):
        pass
    assert names(tmp_path) == {name}


def test_a_bundle_keeps_what_no_export_made(tmp_path: Path) -> None:
    with workshop(tmp_path) as work:
        publish(tmp_path, work, manifest())
    kept = manifest().segments[0].onnx.name
    for name in (kept, *OURS, *FOREIGN):
        (tmp_path / name).write_text("")
    with workshop(tmp_path):
        pass
    assert names(tmp_path) == {MANIFEST, kept, *FOREIGN}


def test_what_a_killed_export_left_is_no_other_file(tmp_path: Path) -> None:
    for name in OURS:
        (tmp_path / name).write_text("")
    (tmp_path / ".part-0123abcd").mkdir()
    with workshop(tmp_path) as work:
        publish(tmp_path, work, manifest())
    assert names(tmp_path) == {MANIFEST}
