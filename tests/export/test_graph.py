"""The exported graphs: their ports, their notes, and the proof against torch."""

import math
from pathlib import Path

import onnx
import pytest
import torch
from tests.shipped import Shipped
from tests.tiny import Pipeline, policy, sample_dit, tiny_dit

from cachesmith.export import ExportConfig
from cachesmith.export.bundle_writer import take_file
from cachesmith.export.parity import ParityRow, judge
from cachesmith.export.parts import part_unit, plan_parts
from cachesmith.export.prove import prove
from cachesmith.export.record import interface_of, record
from cachesmith.export.shapes import axis_ranges, pictures_per_call, specs
from cachesmith.export.to_onnx import check_graph, write_onnx
from cachesmith.policies import EngineError
from cachesmith.policies.bundle.files import describe_file
from cachesmith.policies.bundle.manifest import SegmentEntry


def test_every_segment_is_within_tolerance_at_every_step(shipped: Shipped) -> None:
    calls = shipped.config.steps * len(shipped.config.requests)  # type: ignore[operator]
    for segment in shipped.exported.manifest.segments:
        assert segment.parity is not None and segment.parity.error <= segment.parity.tolerance == 1e-4
        assert segment.parity.steps == len(shipped.exported.rows[segment.name]) == calls


def test_ports_follow_the_manifest(shipped: Shipped) -> None:
    for segment in shipped.exported.manifest.segments:
        model = onnx.load(str(shipped.folder / segment.onnx.name), load_external_data=False)
        for ports, specs_ in ((model.graph.input, segment.inputs), (model.graph.output, segment.outputs)):
            assert [p.name for p in ports] == [s.name for s in specs_]
        axes = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        assert tuple(axes) == segment.inputs[0].axes
        assert model.opset_import[0].version == shipped.exported.manifest.opset


def test_notes_name_the_policy_and_no_path_of_this_machine(shipped: Shipped) -> None:
    for segment in shipped.exported.manifest.segments:
        path = shipped.folder / segment.onnx.name
        notes = {p.key: p.value for p in onnx.load(str(path), load_external_data=False).metadata_props}
        assert notes["cachesmith.policy"] == shipped.policy.id
        assert notes["cachesmith.blocks"] == f"{segment.start}:{segment.stop}"
        content = path.read_bytes()
        assert b"site-packages" not in content and str(Path.cwd()).encode() not in content


def test_axes(dit_bundle: Shipped, flux_bundle: Shipped) -> None:
    dit = dit_bundle.exported.manifest.segments[0]
    # guidance doubles the batch
    assert (dit.ranges["batch"].min, dit.ranges["batch"].opt, dit.ranges["batch"].max) == (2, 4, 6)
    flux = flux_bundle.exported.manifest.segments[0]
    tokens = flux.ranges["tokens"]
    assert (flux.ranges["hidden_states_tokens"].min, flux.ranges["hidden_states_tokens"].max) == (64, 144)
    assert (tokens.min, tokens.max) == (67, 147)
    # nothing reads the text after the last block
    assert [s.name for s in flux_bundle.exported.manifest.segments[-1].outputs] == ["hidden_states_out"]


def test_pictures_of_a_request() -> None:
    assert pictures_per_call({"class_labels": [1, 2]}) == 2
    assert pictures_per_call({"prompt": "a cat", "num_images_per_prompt": 3}) == 3
    assert pictures_per_call({"prompt_embeds": torch.zeros(4, 3, 2)}) == 4


def test_a_failure_names_the_segment_and_the_first_bad_step() -> None:
    rows = [ParityRow(0, 1e-6, 0.0), ParityRow(1, 2e-3, 0.1), ParityRow(2, 9e-3, 0.1)]
    with pytest.raises(
        EngineError, match=r"blocks-000-004 differs from torch at step 1: relative error 2\.00e-03"
    ):
        judge("blocks-000-004", rows, 1e-4)
    with pytest.raises(EngineError, match="at step 0"):
        judge("blocks-000-004", [ParityRow(0, math.nan, math.nan)], 1e-4)


def test_an_invalid_graph_is_one_sentence(tmp_path: Path) -> None:
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    node = onnx.helper.make_node("NoSuchOperator", ["x"], ["y"])
    path = tmp_path / "odd.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "odd", ports[:1], ports[1:])), path)
    with pytest.raises(EngineError, match=r"torch exported odd as an invalid graph: .*; try another --opset"):
        check_graph(path)


def test_other_weights_fail_the_proof(dit_bundle: Shipped) -> None:
    other = tiny_dit(seed=1)
    parts = plan_parts(dit_bundle.policy, other.transformer)
    samples = record(other.transformer, other.scheduler, parts, lambda: sample_dit(other, steps=2))
    segment = dit_bundle.exported.manifest.segments[0]
    rows = prove(segment, samples[segment.name], dit_bundle.folder)
    assert all(row.error > 1e-3 for row in rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_graphs_are_proven_too(dtype: torch.dtype, tmp_path: Path) -> None:
    pipe = tiny_dit()
    del pipe.transformer.transformer_blocks[1:]
    pipe.transformer.to(dtype)
    (part,) = plan_parts(policy(), pipe.transformer)
    parts = (part,)
    (samples,) = record(pipe.transformer, pipe.scheduler, parts, lambda: _steps(pipe)).values()
    face = interface_of(pipe.transformer, part, samples)
    inputs, outputs = specs(face, samples[0])
    path = tmp_path / "half.onnx"
    assert write_onnx(part_unit(pipe.transformer, part).members, face, samples, path, 20) == face
    ranges = axis_ranges(face, inputs, samples, ExportConfig(requests=({"class_labels": [1]},)))
    entry = SegmentEntry(
        name="half", start=0, stop=1, inputs=inputs, outputs=outputs, ranges=ranges, key="0" * 64,
        onnx=describe_file(path), data=take_file(tmp_path, "half.onnx.data"),
    )  # fmt: skip
    rows = prove(entry, samples, tmp_path)
    assert len(rows) == 2 and all(1e-7 < row.error < 2e-2 for row in rows), rows


def _steps(pipe: Pipeline) -> None:
    """Two steps without the decoder, which stays in float32."""
    pipe.scheduler.set_timesteps(2)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(pipe.transformer.dtype)
    for t in pipe.scheduler.timesteps:
        pipe.transformer(noise, timestep=t.expand(2), class_labels=torch.tensor([1, 1000]))
        pipe.scheduler.step(noise, t, noise)
