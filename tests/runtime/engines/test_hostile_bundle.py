"""What a bundle says, what its files say, and what changes between the two: one `EngineError`, or the right outputs."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tests.shipped import Shipped
from tests.tiny import sample_dit, tiny_dit

from cachesmith.policies import EngineError
from cachesmith.policies.bundle.files import describe_file, read_graph
from cachesmith.policies.bundle.manifest import MANIFEST, encode_manifest, read_manifest
from cachesmith.runtime import apply, open_bundle
from cachesmith.runtime.engines import onnxruntime_backend as backend
from cachesmith.runtime.engines.segment_call import new_outputs


@pytest.fixture
def folder(dit_bundle: Shipped, tmp_path: Path) -> Path:
    shutil.copytree(dit_bundle.folder, tmp_path / "bundle")
    return tmp_path / "bundle"


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads((folder / MANIFEST).read_text())
    change(raw["segments"][0])
    (folder / MANIFEST).write_text(json.dumps(raw))


def plant(folder: Path, *nodes: Any, tensors: Any = (), kind: int = TensorProto.FLOAT) -> None:
    """Put another graph in place of the first segment's, its hash in the manifest."""

    def change(segment: dict[str, Any]) -> None:
        kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
        ports = [
            helper.make_tensor_value_info(
                spec["name"],
                kinds[spec["dtype"]],
                [str(a) if isinstance(a, str) else a for a in spec["axes"]],
            )
            for spec in segment["inputs"]
        ]
        output = helper.make_tensor_value_info("hidden_states_out", kind, None)
        graph = helper.make_graph(list(nodes), "g", ports, [output], list(tensors))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        path = folder / "planted.onnx"
        path.write_bytes(model.SerializeToString())
        segment |= {"onnx": describe_file(path).model_dump(), "data": None}

    rewrite(folder, change)


def sampled(folder: Path, shipped: Shipped) -> Any:
    pipe = tiny_dit()
    with apply(pipe, shipped.policy, bundle=open_bundle(folder)):
        return sample_dit(pipe)


def resize(value: list[Any]) -> Callable[[dict[str, Any]], None]:
    return lambda segment: segment["outputs"][0].update(axes=value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["outputs"][0].update(dtype="float16"), r"output hidden_states_out float16 .* has output float32"),
        (lambda s: s["inputs"][-1].update(dtype="int32"), r"class_labels int32 \[batch\], the engine has input int"),
        (resize(["batch", "tokens", 16]), r"\[batch, tokens, 16\], the engine has output float32 \[\?, \?, 32\]"),
        (resize(["batch", "tokens"]), r"\[batch, tokens\], the engine has"),
        (resize(["batch", "nowhere", 32]), "an output has the axis nowhere, which no input has"),
        (resize(["batch", 2**32, 2**32]), "less than or equal to 2147483648"),
        (lambda s: s["inputs"].pop(), r"tensors the manifest does not list \(class_labels\)"),
        (lambda s: s["outputs"].append({"name": "more", "dtype": "float32", "axes": ["batch"]}), "the engine has none"),
        (lambda s: s["onnx"].update(size=2**41), "less than or equal to"),
    ],
)  # fmt: skip
def test_a_manifest_that_does_not_fit_its_graphs(folder: Path, change: Any, message: str) -> None:
    rewrite(folder, change)
    with pytest.raises(EngineError, match=message):
        open_bundle(folder)


def test_graphs_that_fail_while_they_run(folder: Path, dit_bundle: Shipped) -> None:
    long = helper.make_tensor("shape", TensorProto.INT64, [1], [2**40])
    for nodes, tensors in (
        ([helper.make_node("Concat", ["hidden_states", "hidden_states"], ["hidden_states_out"], axis=1)], []),
        (
            [
                helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
                helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
                helper.make_node("Add", ["hidden_states", "sum"], ["hidden_states_out"]),
            ],
            [long],
        ),
    ):
        plant(folder, *nodes, tensors=tensors)
        with pytest.raises(EngineError, match=r"blocks-000-002 failed in ONNX Runtime: .*; export again"):
            sampled(folder, dit_bundle)


def test_a_graph_that_loops_for_ever_is_not_run(folder: Path) -> None:
    value, yes = helper.make_tensor_value_info, helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    same = [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Identity", ["a"], ["b"])]
    ports = [
        value("i", TensorProto.INT64, []),
        value("c", TensorProto.BOOL, []),
        value("a", TensorProto.FLOAT, None),
    ]
    body = helper.make_graph(
        same, "body", ports, [value("d", TensorProto.BOOL, []), value("b", TensorProto.FLOAT, None)]
    )
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    plant(
        folder,
        helper.make_node("Loop", ["", "yes", "hidden_states"], ["hidden_states_out"], body=body),
        tensors=[yes],
    )
    with pytest.raises(EngineError, match="holds loops, branches or functions"):
        open_bundle(folder)


def test_what_was_verified_is_what_runs(
    folder: Path, dit_bundle: Shipped, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graph and weights are replaced the moment after they were read."""
    expected = sampled(folder, dit_bundle)

    def replaced(place: Path, entry: Any) -> Any:
        graph = read_graph(place, entry)
        model = onnx.ModelProto.FromString(graph.onnx)
        model.graph.node[-1].op_type = "Sub"
        (place / entry.onnx.name).write_bytes(model.SerializeToString())
        (place / entry.data.name).write_bytes(bytes(len(graph.data or b"")))
        return graph

    monkeypatch.setattr(backend, "read_graph", replaced)
    assert (sampled(folder, dit_bundle) == expected).all()
    monkeypatch.undo()
    with pytest.raises(EngineError, match="it is not the file that was exported"):
        open_bundle(folder)


def test_a_bundle_that_is_renewed_while_it_is_opened(
    folder: Path, dit_bundle: Shipped, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old files go once the new manifest is there: who read the old one reads the new one."""
    old = read_manifest(folder)
    first = old.segments[0]
    name = f"{first.name}-{first.key[:12]}-00000000.onnx"

    def renew(place: Path, entry: Any) -> Any:
        monkeypatch.undo()
        (folder / first.onnx.name).rename(folder / name)
        renewed = first.model_copy(update={"onnx": describe_file(folder / name)})
        manifest = old.model_copy(update={"segments": (renewed, *old.segments[1:])})
        (folder / MANIFEST).write_bytes(encode_manifest(manifest))
        return read_graph(place, entry)

    monkeypatch.setattr(backend, "read_graph", renew)
    assert open_bundle(folder).manifest.segments[0].onnx.name == name


def test_a_model_of_other_blocks(folder: Path, dit_bundle: Shipped) -> None:
    raw = json.loads((folder / MANIFEST).read_text())
    raw["model"]["blocks"] = 5000
    (folder / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(EngineError, match="a model of 5000 blocks, this one has 4; export this model"):
        sampled(folder, dit_bundle)


def test_a_module_that_the_model_has_not(folder: Path, dit_bundle: Shipped) -> None:
    rewrite(folder, lambda segment: segment.update(module="nowhere", stop=1))
    with pytest.raises(EngineError, match="whose borders do not make up the units"):
        sampled(folder, dit_bundle)


@pytest.mark.parametrize("device", ["mps", "nowhere", "cpu:x"])
def test_devices_that_have_no_engines(folder: Path, device: str) -> None:
    with pytest.raises(EngineError, match="cpu or cuda"):
        open_bundle(folder, device)


def test_more_than_the_machine_has(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda _: 8)
    with pytest.raises(EngineError, match="this machine has 64 of memory"):
        open_bundle(folder)


def test_a_pointer_in_place_of_weights(folder: Path) -> None:
    data = read_manifest(folder).segments[0].data
    assert data is not None
    (folder / data.name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(EngineError, match=r"it is a git-lfs pointer, .*: git lfs pull"):
        open_bundle(folder)


def test_outputs_that_there_is_no_memory_for(dit_bundle: Shipped) -> None:
    entry = dit_bundle.exported.manifest.segments[0]
    huge = entry.outputs[0].model_copy(update={"axes": (2**31, 2**31)})
    inputs = {spec.name: torch.empty([1 for _ in spec.axes]) for spec in entry.inputs}
    with pytest.raises(EngineError, match="no memory for outputs of shapes"):
        new_outputs(entry.model_copy(update={"outputs": (huge,)}), inputs, torch.device("cpu"))
