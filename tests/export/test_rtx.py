"""Real engines, built on the CPU by TensorRT for RTX. They cannot be run here: that takes a GPU."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.shipped import DIT_CONFIG, Shipped
from tests.tiny import tiny_dit

from cachesmith.export import BuildConfig, export_bundle
from cachesmith.export.build_engine import build_engine, configure, plan_build
from cachesmith.policies import EngineError
from cachesmith.policies.bundle.manifest import read_manifest
from cachesmith.runtime import open_bundle

trt = pytest.importorskip("tensorrt_rtx")

RTX = replace(DIT_CONFIG, target="tensorrt-rtx", build=BuildConfig(capabilities=("8.9", "12.0")))


def test_every_segment_becomes_an_engine(shipped: Shipped) -> None:
    config = RTX.build
    build, phases = plan_build("tensorrt-rtx", config), set()
    for segment in shipped.exported.manifest.segments:
        onnx = shipped.folder / segment.onnx.name
        plan = build_engine(segment, onnx, "tensorrt-rtx", build, config, lambda phase, *_: phases.add(phase))
        assert len(plan) > 100_000
    assert "Building engine" in phases
    assert build.capabilities == ("8.9", "12.0") and build.gpu is None


def test_graphs_are_kept_and_engines_made_once(dit_bundle: Shipped, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(dit_bundle.folder, folder)
    first = export_bundle(tiny_dit(), dit_bundle.policy, folder, RTX)
    assert (first.graphs, first.engines) == (0, 2)
    assert export_bundle(tiny_dit(), dit_bundle.policy, folder, RTX).engines == 0
    slower = replace(RTX, build=replace(RTX.build, level=2))
    second = export_bundle(tiny_dit(), dit_bundle.policy, folder, slower)
    assert second.engines == 2 and second.manifest.build is not None and second.manifest.build.level == 2
    assert len(list(folder.glob("*.engine"))) == 2
    assert read_manifest(folder) == second.manifest
    with pytest.raises(EngineError, match="need an NVIDIA GPU and the model is on cpu"):
        open_bundle(folder)
    open_bundle(folder, backend="onnxruntime")


def test_an_interrupted_build_leaves_the_bundle_as_it_was(dit_bundle: Shipped, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(dit_bundle.folder, folder)
    before = sorted(path.name for path in folder.iterdir())

    def interrupt(phase: str, *_: int) -> None:
        if phase == "Building engine":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(tiny_dit(), dit_bundle.policy, folder, RTX, interrupt)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert read_manifest(folder) == dit_bundle.exported.manifest


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BuildConfig(flags=("FP16",)), r"has no BuilderFlag\.FP16; it has .*TF32"),
        (
            BuildConfig(timing_cache=Path("timings")),
            "takes no timings at build time; leave --timing-cache out",
        ),
        (BuildConfig(capabilities=("89",)), "'89' is no compute capability; write numbers such as 8.9"),
        (BuildConfig(hardware="HOPPER"), r"has no HardwareCompatibilityLevel\.HOPPER; it has NONE"),
        (BuildConfig(capabilities=("9.0",)), r"has no ComputeCapability\.SM90; it has .*SM89"),
    ],
)
def test_what_this_version_lacks(config: BuildConfig, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        plan_build("tensorrt-rtx", config)


def test_capabilities_are_read_with_a_light_hand() -> None:
    assert plan_build("tensorrt-rtx", BuildConfig(capabilities=("8.9", " 12.0", "8.9"))).capabilities == (
        "8.9",
        "12.0",
    )


@pytest.mark.parametrize("flags", [(), ("TF32",)])
def test_float32_is_float32_unless_asked(flags: tuple[str, ...]) -> None:
    settings = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_builder_config()
    assert settings.get_flag(trt.BuilderFlag.TF32), "the default of TensorRT"
    build = plan_build("tensorrt-rtx", replace(RTX.build, flags=flags))
    configure(trt, settings, "tensorrt-rtx", build)
    assert settings.get_flag(trt.BuilderFlag.TF32) == bool(flags)


def test_a_graph_that_cannot_be_read(dit_bundle: Shipped, tmp_path: Path) -> None:
    segment = dit_bundle.exported.manifest.segments[0]
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    build = plan_build("tensorrt-rtx", RTX.build)
    with pytest.raises(EngineError, match=r"cannot read broken\.onnx"):
        build_engine(segment, tmp_path / "broken.onnx", "tensorrt-rtx", build, RTX.build, lambda *_: None)
