"""ONNX Runtime does only what was asked: no other provider, no file that was not verified."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from tests.shipped import Shipped

from cachesmith.policies import EngineError
from cachesmith.policies.bundle.manifest import MANIFEST, SegmentEntry
from cachesmith.policies.bundle.onnx_graph import FIELDS, REFUSED_FIELDS, locations
from cachesmith.runtime import open_bundle
from cachesmith.runtime.engines.onnxruntime_backend import ONNXRUNTIME_DTYPES, open_segment
from cachesmith.runtime.engines.segment_call import LoadOptions

NAMES = {
    "ModelProto": "model", "GraphProto": "graph", "NodeProto": "node", "AttributeProto": "attribute",
    "SparseTensorProto": "sparse", "TensorProto": "tensor",
}  # fmt: skip
LEADING = {*NAMES, "TrainingInfoProto", "FunctionProto"}
"""Messages that hold tensors, or hold what does."""

TYPES = {dtype: name for name, dtype in ONNXRUNTIME_DTYPES.items()}


class FakeOrt:
    """An ONNX Runtime whose CUDA libraries do not load: it goes on without a word."""

    class SessionOptions:
        def add_external_initializers_from_files_in_memory(self, *_: Any) -> None: ...

    def __init__(self, present: list[str], entry: SegmentEntry):
        self.present, self.entry, self.preloaded = present, entry, False
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.InferenceSession = self._session

    def preload_dlls(self) -> None:
        self.preloaded = True

    def _session(self, *_: Any, providers: Any) -> Any:
        self.asked = providers
        ports = [
            [SimpleNamespace(name=s.name, type=TYPES[s.dtype], shape=list(s.axes)) for s in specs]
            for specs in (self.entry.inputs, self.entry.outputs)
        ]
        return SimpleNamespace(
            get_providers=lambda: self.present, get_inputs=lambda: ports[0], get_outputs=lambda: ports[1]
        )


def on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, shipped: Shipped, present: list[str], **options: Any
) -> FakeOrt:
    entry = shipped.exported.manifest.segments[0]
    ort = FakeOrt(present, entry)
    monkeypatch.setattr("cachesmith.runtime.engines.onnxruntime_backend.onnxruntime_module", lambda: ort)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: SimpleNamespace(cuda_stream=7))
    place = LoadOptions(torch.device("cuda", 0))
    open_segment(shipped.folder, entry, place, **options)
    return ort


def test_a_provider_that_does_not_start(dit_bundle: Shipped, monkeypatch: pytest.MonkeyPatch) -> None:
    message = (
        r"could not start CUDAExecutionProvider \(it started CPUExecutionProvider\); install onnxruntime-gpu"
    )
    with pytest.raises(EngineError, match=message):
        on_a_gpu(monkeypatch, dit_bundle, ["CPUExecutionProvider"])
    two = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    with pytest.raises(EngineError, match="could not start TensorrtExecutionProvider"):
        on_a_gpu(monkeypatch, dit_bundle, two, tensorrt=True)
    ort = on_a_gpu(monkeypatch, dit_bundle, two)
    assert ort.preloaded
    assert ort.asked[0] == (two[0], {"device_id": "0", "user_compute_stream": "7", "use_tf32": "0"})


def test_the_tensorrt_provider_is_not_for_the_cpu(dit_bundle: Shipped) -> None:
    with pytest.raises(EngineError, match="onnxruntime-tensorrt needs an NVIDIA GPU and the model is on cpu"):
        open_bundle(dit_bundle.folder, backend="onnxruntime-tensorrt")


def test_weights_that_the_manifest_does_not_list(dit_bundle: Shipped, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(dit_bundle.folder, folder)
    raw = json.loads((folder / MANIFEST).read_text())
    name = raw["segments"][0]["data"]["name"]
    raw["segments"][0]["data"] = None
    (folder / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(
        EngineError, match=f"reads its weights from '{name}', which the manifest does not list"
    ):
        open_bundle(folder)


def test_every_place_where_a_graph_can_name_a_file() -> None:
    """The fields that are followed or refused are those of the installed onnx that lead to a tensor."""
    for message, kind in NAMES.items():
        fields = onnx.onnx_ml_pb2.DESCRIPTOR.message_types_by_name[message].fields
        found = {f.number for f in fields if f.message_type is not None and f.message_type.name in LEADING}
        followed = {n for n, k in FIELDS[kind].items() if k != "entry"}
        assert found == followed | REFUSED_FIELDS.get(kind, set()), message


def test_locations_of_an_exported_graph(dit_bundle: Shipped) -> None:
    for segment in dit_bundle.exported.manifest.segments:
        assert segment.data is not None
        assert locations((dit_bundle.folder / segment.onnx.name).read_bytes()) == {segment.data.name}
