"""Real engines without a GPU: the demo model's; DiT-XL/2 and FLUX.1-dev at true size (most of that slow)."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tests.export.true_size import TRUE_SIZE
from tests.shipped import dit_policy

from cachesmith.export import BuildConfig, ExportConfig, export_bundle
from cachesmith.export.build_engine import build_engine, parse_graph, plan_build
from cachesmith.export.parts import Part, natural_borders, part_unit
from cachesmith.export.record import interface_of, record
from cachesmith.export.shapes import axis_ranges, specs
from cachesmith.export.to_onnx import write_onnx
from cachesmith.policies.bundle.files import describe_file
from cachesmith.policies.bundle.manifest import Range, SegmentEntry
from cachesmith.runtime import open_bundle

trt = pytest.importorskip("tensorrt_rtx")

ADA = BuildConfig(capabilities=("8.9",))
ONE = ExportConfig(requests=({"class_labels": [1, 2]},), pictures=Range(min=1, opt=2, max=2))
DEMO = Path(__file__).parents[2] / "examples" / "fashion_dit" / "model"


def segment(model: Any, part: Part, request: dict[str, Any], folder: Path) -> SegmentEntry:
    (samples,) = record(model, None, (part,), lambda: model(**request)).values()
    face = interface_of(model, part, samples)
    path = folder / f"{part.name}.onnx"
    face = write_onnx(part_unit(model, part).members, face, samples, path, 20)
    sample = samples[0]
    inputs, outputs = specs(face, sample)
    return SegmentEntry(
        name=part.name,
        start=part.start,
        stop=part.stop,
        inputs=inputs,
        outputs=outputs,
        ranges=axis_ranges(face, inputs, [sample], ONE),
        key="0" * 64,
        onnx=describe_file(path),
    )


def engine_size(entry: SegmentEntry, folder: Path) -> int:
    build = plan_build("tensorrt-rtx", ADA)
    return len(build_engine(entry, folder / entry.onnx.name, "tensorrt-rtx", build, ADA, lambda *_: None))


def dit_xl(blocks: int) -> tuple[Any, dict[str, Any]]:
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=16, attention_head_dim=72, out_channels=8, num_layers=blocks, sample_size=32
    )
    return model.eval(), {
        "hidden_states": torch.randn(2, 4, 32, 32),
        "timestep": torch.tensor([500, 500]),
        "class_labels": torch.tensor([1, 1000]),
    }


def test_the_demo_model(tmp_path: Path) -> None:
    pipe = diffusers.DiffusionPipeline.from_pretrained(DEMO, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    config = ExportConfig("tensorrt-rtx", requests=({"class_labels": [1]},), steps=50, build=ADA)
    exported = export_bundle(pipe, dit_policy(), tmp_path / "b", config)
    assert exported.engines == len(exported.manifest.segments) == 2
    assert all(s.parity is not None and s.parity.error < 1e-5 for s in exported.manifest.segments)
    open_bundle(tmp_path / "b", backend="onnxruntime")


def test_a_block_of_dit_xl_2_parses(tmp_path: Path) -> None:
    model, example = dit_xl(1)
    entry = segment(model, Part(0, 1, 0), example, tmp_path)
    network, _parser = parse_graph(trt, trt.Builder(trt.Logger(trt.Logger.ERROR)), tmp_path / entry.onnx.name)
    assert [network.get_input(i).shape[-1] for i in range(network.num_inputs)] == [1152, -1, -1]
    assert network.get_output(0).shape[-1] == 1152


@pytest.mark.slow
def test_dit_xl_2(tmp_path: Path) -> None:
    model, example = dit_xl(4)
    entry = segment(model, Part(0, 4, 0), example, tmp_path)
    assert engine_size(entry, tmp_path) > 4e8


@pytest.mark.slow
def test_all_of_dit_xl_2_is_past_the_protobuf_limit(tmp_path: Path) -> None:
    model, example = dit_xl(28)
    entry = segment(model, Part(0, 28, 0), example, tmp_path)
    assert (tmp_path / f"{entry.onnx.name}.data").stat().st_size > 2**31 and entry.onnx.size < 2**24
    network, _parser = parse_graph(trt, trt.Builder(trt.Logger(trt.Logger.ERROR)), tmp_path / entry.onnx.name)
    assert network.num_inputs == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRUE_SIZE)
def test_a_block_of_each_kind(name: str, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        model, example = TRUE_SIZE[name]()
    finally:
        torch.set_default_dtype(torch.float32)
    for start in (0, *natural_borders(model)):
        part = Part(start, start + 1, 0)
        assert engine_size(segment(model.eval(), part, example, tmp_path), tmp_path) > 2e8
