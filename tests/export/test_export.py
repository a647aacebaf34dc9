"""Exporting twice, exporting what cannot be exported, and exports that break off."""

import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
from tests.shipped import DIT_CONFIG, Shipped, dit_policy
from tests.tiny import policy, sample_dit, tiny_dit

from cachesmith.export import export_bundle
from cachesmith.export.bundle_writer import workshop
from cachesmith.policies import EngineError, Interval, PolicyError
from cachesmith.policies.bundle.files import verify
from cachesmith.policies.bundle.manifest import read_manifest
from cachesmith.runtime import apply, open_bundle


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.fixture
def copy(dit_bundle: Shipped, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    shutil.copytree(dit_bundle.folder, folder)
    return folder


def test_nothing_changed_nothing_made(dit_bundle: Shipped, copy: Path) -> None:
    before = files(copy)
    again = export_bundle(tiny_dit(), dit_bundle.policy, copy, DIT_CONFIG)
    assert (again.graphs, again.engines, again.rows) == (0, 0, {})
    assert again.manifest == dit_bundle.exported.manifest
    assert {n: t for n, t in files(copy).items() if n != "manifest.json"} == {
        n: t for n, t in before.items() if n != "manifest.json"
    }


def test_another_policy_with_the_same_borders_renames_the_graphs_only(
    dit_bundle: Shipped, copy: Path
) -> None:
    refitted = dit_policy(Interval(interval=5))
    again = export_bundle(tiny_dit(), refitted, copy, DIT_CONFIG)
    assert again.graphs == 0 and again.manifest.policy_id == refitted.id != dit_bundle.policy.id
    assert not [name for name in files(copy) if dit_bundle.policy.id[:8] in name]
    open_bundle(copy)


def test_only_changed_weights_are_exported_again(dit_bundle: Shipped, copy: Path) -> None:
    pipe = tiny_dit()
    pipe.transformer.transformer_blocks[3].ff.net[2].bias.data += 1
    again = export_bundle(pipe, dit_bundle.policy, copy, DIT_CONFIG)
    assert again.graphs == 1 and [*again.rows] == ["blocks-002-004"]
    old, new = dit_bundle.exported.manifest.segments, again.manifest.segments
    assert old[0] == new[0] and old[1].key != new[1].key
    assert len(files(copy)) == 5  # the old segment's files are gone
    verify(copy, read_manifest(copy))


def test_the_same_export_proves_the_same_figures(tmp_path: Path) -> None:
    pipe = tiny_dit()
    del pipe.transformer.transformer_blocks[1:]
    short = replace(DIT_CONFIG, steps=2)
    one, two = (export_bundle(pipe, policy(), tmp_path / name, short).manifest for name in "ab")
    assert one == two and one.segments[0].parity is not None


def test_a_damaged_bundle_is_not_reused(
    dit_bundle: Shipped, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next(copy.glob("*.data")).write_bytes(b"")
    seen = []

    def stop(*_: object) -> None:
        seen.append(1)
        raise EngineError("recorded")

    monkeypatch.setattr("cachesmith.export.bundling.record_parts", stop)
    with pytest.raises(EngineError, match="recorded"):
        export_bundle(tiny_dit(), dit_bundle.policy, copy, DIT_CONFIG)
    assert seen


def test_an_interrupted_export_keeps_what_it_finished(
    dit_bundle: Shipped, copy: Path, tmp_path: Path
) -> None:
    def interrupt(phase: str, done: int, total: int) -> None:
        if phase == stop:
            raise KeyboardInterrupt

    before, changed, stop = files(copy), replace(DIT_CONFIG, steps=2), "exporting blocks-002-004"
    with pytest.raises(KeyboardInterrupt):
        export_bundle(tiny_dit(), dit_bundle.policy, copy, changed, interrupt)
    assert files(copy).items() >= before.items()
    assert open_bundle(copy).manifest == dit_bundle.exported.manifest
    resumed = export_bundle(tiny_dit(), dit_bundle.policy, copy, changed)
    assert resumed.graphs == 1 and len(files(copy)) == 5
    stop = "exporting blocks-000-002"
    with pytest.raises(KeyboardInterrupt):
        export_bundle(tiny_dit(), dit_bundle.policy, tmp_path / "new", changed, interrupt)
    assert not (tmp_path / "new").exists()


def test_a_second_export_into_the_same_folder_is_refused(dit_bundle: Shipped, tmp_path: Path) -> None:
    with workshop(tmp_path / "b"), pytest.raises(EngineError, match="another export is writing"):
        export_bundle(tiny_dit(), dit_bundle.policy, tmp_path / "b", DIT_CONFIG)


def test_a_full_disk_is_one_sentence(
    dit_bundle: Shipped, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cachesmith.export.bundling.write_onnx", full)
    with pytest.raises(
        EngineError, match="No space left on device; with that mended, the same export goes on"
    ):
        export_bundle(tiny_dit(), dit_bundle.policy, copy, replace(DIT_CONFIG, steps=2))
    assert open_bundle(copy).manifest == dit_bundle.exported.manifest


def test_leftovers_of_a_killed_export_are_swept(dit_bundle: Shipped, copy: Path) -> None:
    (copy / ".part-0123abcd").mkdir()
    (copy / ".part-0123abcd" / "x.onnx").write_bytes(b"x")
    (copy / "blocks-000-004-0123456789ab.onnx").write_bytes(b"x")
    (copy / "README.md").write_text("mine")
    export_bundle(tiny_dit(), dit_bundle.policy, copy, DIT_CONFIG)
    assert not (copy / ".part-0123abcd").exists() and not (copy / "blocks-000-004-0123456789ab.onnx").exists()
    assert (copy / "README.md").exists()


def test_a_folder_of_something_else_is_left_alone(dit_bundle: Shipped, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(EngineError, match="holds other files; give a new or empty folder"):
        export_bundle(tiny_dit(), dit_bundle.policy, tmp_path, DIT_CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    pipe = tiny_dit()
    with pytest.raises(EngineError, match="no request to record"):
        export_bundle(pipe, dit_policy(), tmp_path, replace(DIT_CONFIG, requests=()))
    pipe.transformer.peft_config = {"style": None}
    with pytest.raises(EngineError, match=r"LoRA style is loaded but not fused; pipe\.fuse_lora\(\)"):
        export_bundle(pipe, dit_policy(), tmp_path, DIT_CONFIG)
    pipe = tiny_dit()
    pipe.transformer.to("meta")
    with pytest.raises(EngineError, match="offloaded"):
        export_bundle(pipe, dit_policy(), tmp_path, DIT_CONFIG)


class NewDiT(diffusers.DiTTransformer2DModel):  # type: ignore[misc]
    """A class that no row is known of."""


@pytest.mark.slow
def test_a_class_without_a_row(tmp_path: Path) -> None:
    """Its blocks are found in the first call; a bundle is not opened for blocks that are not known yet."""
    pipe, other, reusing = tiny_dit(), tiny_dit(), policy()
    pipe.transformer.__class__ = other.transformer.__class__ = NewDiT
    assert export_bundle(pipe, reusing, tmp_path / "bundle", DIT_CONFIG).graphs > 0
    with apply(pipe, reusing):
        expected = sample_dit(pipe)
    with apply(pipe, reusing, bundle=tmp_path / "bundle") as session:
        assert np.allclose(sample_dit(pipe), expected, atol=1e-4)
    assert not session.stats.fallbacks
    with (
        pytest.raises(PolicyError, match="no adapter for NewDiT; have one found by a call of it"),
        apply(other, reusing, bundle=tmp_path / "bundle"),
    ):
        pass
