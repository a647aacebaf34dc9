"""The code that binds tensors to TensorRT, run against a stand-in: what TensorRT itself does takes a GPU."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.export import standin
from tests.shipped import Shipped
from tests.tiny import sample_dit, tiny_dit

from cachesmith.policies import EngineError
from cachesmith.policies.bundle.files import describe_file
from cachesmith.policies.bundle.manifest import MANIFEST, Build, encode_manifest
from cachesmith.runtime import apply, open_bundle
from cachesmith.runtime.engines import tensorrt_backend as backend
from cachesmith.runtime.engines.segment_call import check_ports
from cachesmith.runtime.engines.tensorrt_version import Machine

STREAM = 77
L4 = Machine(standin.__version__, "NVIDIA L4", "8.9")


class Graph:
    """A CUDA graph that replays what was enqueued while it was captured."""

    recording: Any = None

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def replay(self) -> None:
        for call in self.calls:
            call()


@contextmanager
def capture(graph: Graph, stream: Any) -> Iterator[None]:
    original = standin.Context.execute_async_v3

    def record(context: Any, handle: int) -> bool:
        graph.calls.append(lambda: original(context, handle))
        return True

    standin.Context.execute_async_v3 = record  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        standin.Context.execute_async_v3 = original  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(cuda_stream=STREAM, synchronize=lambda: None)
    monkeypatch.setattr(backend, "tensorrt_module", lambda _: standin)
    monkeypatch.setattr(backend, "this_machine", lambda *_: L4)
    monkeypatch.setattr(backend, "aside", lambda *_: nullcontext())
    for name, value in {
        "device": lambda _: nullcontext(), "stream": lambda _: nullcontext(), "Stream": lambda _: stream,
        "CUDAGraph": Graph, "graph": capture,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(standin.Runtime, "faults", set())
    monkeypatch.setattr(standin.Runtime, "opened", [])


@pytest.fixture
def folder(dit_bundle: Shipped, tmp_path: Path) -> Path:
    """The bundle, with engines for the stand-in."""
    copy = tmp_path / "bundle"
    shutil.copytree(dit_bundle.folder, copy)
    segments = []
    for segment in dit_bundle.exported.manifest.segments:
        engine = copy / f"{segment.name}.engine"
        engine.write_text(str(copy / segment.onnx.name))
        files = {"engine": describe_file(engine), "engine_key": "0" * 64}
        segments.append(segment.model_copy(update=files))
    build = Build(version=L4.version, gpu=L4.gpu, capabilities=(L4.capability,), level=3)
    changed = {"target": "tensorrt", "segments": tuple(segments), "build": build}
    manifest = dit_bundle.exported.manifest.model_copy(update=changed)
    (copy / MANIFEST).write_bytes(encode_manifest(manifest))
    return copy


@pytest.mark.parametrize("graphs", [False, True])
def test_same_pictures_as_torch(dit_bundle: Shipped, folder: Path, graphs: bool) -> None:
    engines, pipe = open_bundle(folder, cuda_graphs=graphs), tiny_dit()
    with apply(pipe, dit_bundle.policy):
        expected = sample_dit(pipe), sample_dit(pipe, labels=(3,))
    with apply(pipe, dit_bundle.policy, bundle=engines):
        found = sample_dit(pipe), sample_dit(pipe, labels=(3,))
    for a, b in zip(found, expected, strict=True):
        assert abs(a - b).max() < 1e-4


def test_one_stream_and_one_arena(folder: Path, dit_bundle: Shipped) -> None:
    pipe = tiny_dit()
    with apply(pipe, dit_bundle.policy, bundle=open_bundle(folder)):
        sample_dit(pipe)
    contexts = [c for engine in standin.Runtime.opened for c in engine.contexts]
    assert len(contexts) == 2 and {s for c in contexts for s in c.streams} == {STREAM}
    assert len({c.memory for c in contexts}) == 1 and contexts[0].memory[1] == 1000


def inputs(segment: Any, batch: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(batch)
    tokens = torch.rand(batch, segment.ranges["tokens"].opt if "tokens" in segment.ranges else 16, 32)
    whole = torch.ones(batch, dtype=torch.int64)
    return {"hidden_states": tokens, "timestep": whole, "class_labels": whole}


def test_a_graph_has_a_context_of_its_own_and_graphs_are_few(
    folder: Path, dit_bundle: Shipped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "GRAPHS", 2)
    segment = dit_bundle.exported.manifest.segments[0]
    plain, graphed = (open_bundle(folder, cuda_graphs=g).calls[segment.name] for g in (False, True))
    assert isinstance(graphed, backend.Graphed)
    for batch in (2, 3, 2, 4, 2, 3):
        given = inputs(segment, batch)
        first = graphed(given)
        assert all(torch.equal(a, b) for a, b in zip(first, plain(given), strict=True))
        assert len(graphed.captured) <= 2
    contexts = [c.context for c in graphed.captured.values()]
    assert len({id(c) for c in contexts}) == 2 and graphed.segment.context not in contexts
    engine = graphed.segment.engine
    assert len(engine.contexts) == 1 + 4, "2, 3, 4 and once more 3, which had to go"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("plan", "refused blocks-000-002.engine; export again on this machine"),
        (
            "dtype",
            r"the manifest has the input hidden_states float32 \[batch, tokens, 32\], the engine has input float16",
        ),
        ("context", "no memory for an execution context"),
        ("shape", r"failed to take \(2, 16, 32\) as hidden_states in blocks-000-002"),
        ("address", "failed to bind hidden_states in blocks-000-002"),
        ("execute", "failed to run in blocks-000-002"),
    ],
)
def test_what_fails_is_said(folder: Path, dit_bundle: Shipped, fault: str, message: str) -> None:
    standin.Runtime.faults.add(fault)
    segment = dit_bundle.exported.manifest.segments[0]
    with pytest.raises(EngineError, match=message):
        open_bundle(folder).calls[segment.name](inputs(segment, 2))


def test_an_engine_of_another_segment(folder: Path) -> None:
    engine = SimpleNamespace(num_io_tensors=1, get_tensor_name=lambda _: "other",
                             get_tensor_mode=lambda _: SimpleNamespace(name="INPUT"),
                             get_tensor_dtype=lambda _: SimpleNamespace(name="FLOAT"),
                             get_tensor_shape=lambda _: (-1, 8))  # fmt: skip
    (entry, _) = open_bundle(folder).manifest.segments
    ports = backend._ports(engine)
    with pytest.raises(EngineError, match=r"the output hidden_states_out .*, the engine has none"):
        check_ports(entry, ports, unused=True)
    with pytest.raises(EngineError, match="has tensors the manifest does not list"):
        check_ports(entry.model_copy(update={"outputs": ()}), ports, unused=True)
