"""Segments as TensorRT engines, for `tensorrt` and `tensorrt_rtx`, which have the same API.

Written against the documented API. The tests run its binding code against a stand-in; execution takes a GPU, where
nothing of it has run yet; see docs/export.md.
"""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from cachesmith.policies import EngineError
from cachesmith.policies.bundle.files import read_graph, read_verified
from cachesmith.policies.bundle.manifest import Build, Manifest, SegmentEntry
from cachesmith.runtime.engines.segment_call import LoadOptions, Port, SegmentCall, check_ports, new_outputs
from cachesmith.runtime.engines.side_stream import aside
from cachesmith.runtime.engines.tensorrt_version import check_machine, tensorrt_module, this_machine

_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "INT32": "int32", "BOOL": "bool",
}  # fmt: skip
"""What `trt.DataType` calls the dtypes of a manifest."""

ALIGNMENT = 256
"""Bytes: the addresses of inputs are multiples of it."""

GRAPHS = 4
"""CUDA graphs a segment keeps, one a combination of shapes; the one unused for longest goes first."""


def open_tensorrt(folder: Path, manifest: Manifest, options: LoadOptions) -> dict[str, SegmentCall]:
    """Load every segment's engine; they share a stream and an activation arena, since they run one after another."""
    assert manifest.build is not None
    trt = tensorrt_module(manifest.target)
    check_machine(manifest.build, manifest.target, this_machine(trt, options.device))
    with torch.cuda.device(options.device):
        engines = {
            entry.name: _deserialise(trt, folder, entry, manifest.build) for entry in manifest.segments
        }
        place = EnginePlace.of(engines.values(), options.device)
        calls: dict[str, SegmentCall] = {}
        for entry in manifest.segments:
            segment = TensorRTSegment(trt, engines[entry.name], entry, place)
            calls[entry.name] = Graphed(segment) if options.cuda_graphs else segment
    return calls


@dataclass(frozen=True)
class EnginePlace:
    """What all segments share. `arena`: bytes for the activations of whichever segment runs.

    `lock` is held from binding a segment's tensors until its work is in the stream, so that threads take turns.
    """

    arena: Tensor
    stream: torch.cuda.Stream
    lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def of(engines: Iterable[Any], device: torch.device) -> "EnginePlace":
        """Make the stream, and an arena for the largest engine."""
        size = max(engine.device_memory_size_v2 for engine in engines)
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        arena = torch.empty(max(size, 1), dtype=torch.uint8, device=device)
        with aside(stream, (arena,)):
            return EnginePlace(arena, stream)


def _deserialise(trt: Any, folder: Path, entry: SegmentEntry, build: Build) -> Any:
    assert entry.engine is not None
    plan = read_verified(folder, entry.engine)
    logger = trt.Logger(trt.Logger.ERROR)
    runtime = trt.Runtime(logger)
    if "VERSION_COMPATIBLE" in build.flags:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"{trt.__name__} refused {entry.engine.name}; export again on this machine")
    if "STRIP_PLAN" in build.flags:
        _refit(trt, logger, engine, folder, entry)
    check_ports(entry, _ports(engine), unused=True)
    return engine


def _ports(engine: Any) -> list[Port]:
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    return [
        Port(
            name,
            "input" if engine.get_tensor_mode(name).name == "INPUT" else "output",
            _DTYPES.get(kind := engine.get_tensor_dtype(name).name, kind),
            tuple(extent if extent >= 0 else None for extent in engine.get_tensor_shape(name)),
        )
        for name in names
    ]


def _refit(trt: Any, logger: Any, engine: Any, folder: Path, entry: SegmentEntry) -> None:
    """Put the weights of the ONNX file into a plan that was built without them.

    The parser reads weights from a path, so what was verified is written where nobody else writes.
    """
    graph = read_graph(folder, entry)
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    with TemporaryDirectory() as private:
        path = Path(private) / entry.onnx.name
        path.write_bytes(graph.onnx)
        if graph.data is not None and entry.data is not None:
            (path.parent / entry.data.name).write_bytes(graph.data)
        if not parser.refit_from_file(str(path)) or not refitter.refit_cuda_engine():
            raise EngineError(
                f"{entry.name}: the stripped engine does not take the weights of {entry.onnx.name}; export again"
            )


def _aligned(value: Tensor) -> Tensor:
    """A tensor of its own begins where TensorRT wants inputs to; later rows of another may not."""
    return value.clone() if value.data_ptr() % ALIGNMENT else value


class TensorRTSegment:
    """One engine. Runs on the shared stream, in order with the caller's."""

    def __init__(self, trt: Any, engine: Any, entry: SegmentEntry, place: EnginePlace):
        self.trt, self.engine, self.entry, self.place = trt, engine, entry, place
        names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        self.used = [spec.name for spec in entry.inputs if spec.name in names]
        self.context = self.new_context()

    def new_context(self) -> Any:
        """Return an execution context in the shared arena; raise `EngineError` when there is no memory for it."""
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self.engine.create_execution_context(strategy)
        if context is None:
            raise EngineError(
                f"{self.entry.name}: no memory for an execution context; free some or use a smaller profile"
            )
        context.set_device_memory(self.place.arena.data_ptr(), self.place.arena.numel())
        return context

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Compute the segment into new tensors."""
        held = {spec.name: _aligned(inputs[spec.name].contiguous()) for spec in self.entry.inputs}
        outputs = new_outputs(self.entry, held, self.place.arena.device)
        with self.place.lock, aside(self.place.stream, (*held.values(), *outputs)):
            self.enqueue(self.context, held, outputs)
        return outputs

    def enqueue(self, context: Any, inputs: Mapping[str, Tensor], outputs: tuple[Tensor, ...]) -> None:
        """Compute the segment into `outputs`, whose addresses and those of `inputs` are bound as they are."""
        addresses = {name: inputs[name] for name in self.used}
        for name, value in addresses.items():
            self._succeed(
                context.set_input_shape(name, tuple(value.shape)), f"take {tuple(value.shape)} as {name}"
            )
        addresses |= {spec.name: value for spec, value in zip(self.entry.outputs, outputs, strict=True)}
        for name, value in addresses.items():
            self._succeed(context.set_tensor_address(name, value.data_ptr()), f"bind {name}")
        self._succeed(context.execute_async_v3(self.place.stream.cuda_stream), "run")

    def _succeed(self, done: bool, what: str) -> None:
        if not done:
            raise EngineError(f"TensorRT failed to {what} in {self.entry.name}; its log above says why")


class Graphed:
    """A segment captured as one CUDA graph per shape: inputs are copied to fixed addresses, outputs copied out."""

    def __init__(self, segment: TensorRTSegment):
        self.segment = segment
        self.captured: dict[tuple[tuple[int, ...], ...], Capture] = {}

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Replay the graph of these shapes, capturing it the first time."""
        shapes = tuple(tuple(inputs[spec.name].shape) for spec in self.segment.entry.inputs)
        with self.segment.place.lock:
            capture = self.captured.pop(shapes, None)
            if capture is None:
                self._make_room()
                capture = Capture(self.segment, inputs)
            self.captured[shapes] = capture
            return capture.replay(inputs)

    def _make_room(self) -> None:
        if len(self.captured) >= GRAPHS:
            self.segment.place.stream.synchronize()  # it may be running
            del self.captured[next(iter(self.captured))]


class Capture:
    """One CUDA graph, with an execution context of its own: what a graph holds must never be bound anew."""

    def __init__(self, segment: TensorRTSegment, inputs: Mapping[str, Tensor]):
        self.stream, self.context = segment.place.stream, segment.new_context()
        self.inputs = {
            s.name: inputs[s.name].clone(memory_format=torch.contiguous_format) for s in segment.entry.inputs
        }
        self.outputs = new_outputs(segment.entry, self.inputs, segment.place.arena.device)
        with aside(self.stream, (*self.inputs.values(), *self.outputs)):
            # the first run after a change of shape may not be captured
            segment.enqueue(self.context, self.inputs, self.outputs)
        self.stream.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream):
            segment.enqueue(self.context, self.inputs, self.outputs)

    def replay(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Copy the inputs in, run the graph, and return copies of its outputs."""
        results = tuple(torch.empty_like(value) for value in self.outputs)
        with aside(self.stream, (*inputs.values(), *results)), torch.cuda.stream(self.stream):
            for name, fixed in self.inputs.items():
                fixed.copy_(inputs[name])
            self.graph.replay()
            for result, fixed in zip(results, self.outputs, strict=True):
                result.copy_(fixed)
        return results
