"""Segments as TensorRT engines, for `tensorrt` and `tensorrt_rtx`, which have the same API.

Written against the documented API. Without a GPU nothing beyond the checks before deserialisation can run, and so far
nothing else has; see docs/export.md.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cachesmith.policies import EngineError
from cachesmith.policies.bundle import Build, Manifest, SegmentEntry
from cachesmith.policies.bundle_files import read_verified
from cachesmith.runtime.machine import check_machine, tensorrt_module, this_machine
from cachesmith.runtime.segment_call import LoadOptions, SegmentCall, new_outputs


def open_tensorrt(folder: Path, manifest: Manifest, options: LoadOptions) -> dict[str, SegmentCall]:
    """Load every segment's engine; they share one activation arena, since they run one after another."""
    assert manifest.build is not None
    trt = tensorrt_module(manifest.target)
    check_machine(manifest.build, manifest.target, this_machine(trt, options.device))
    with torch.cuda.device(options.device):
        engines = {
            entry.name: _deserialise(trt, folder, entry, manifest.build) for entry in manifest.segments
        }
        size = max(engine.device_memory_size_v2 for engine in engines.values())
        arena = torch.empty(max(size, 1), dtype=torch.uint8, device=options.device)
        calls: dict[str, SegmentCall] = {}
        for entry in manifest.segments:
            segment = TensorRTSegment(trt, engines[entry.name], entry, arena)
            calls[entry.name] = Graphed(segment) if options.cuda_graphs else segment
    return calls


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
    return engine


def _refit(trt: Any, logger: Any, engine: Any, folder: Path, entry: SegmentEntry) -> None:
    """Put the weights of the ONNX file into a plan that was built without them."""
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(folder / entry.onnx.name)) or not refitter.refit_cuda_engine():
        raise EngineError(f"{entry.name}: the stripped engine does not take the weights of {entry.onnx.name}")


class TensorRTSegment:
    """One engine with one execution context. Runs on the caller's stream; not for two threads at once."""

    def __init__(self, trt: Any, engine: Any, entry: SegmentEntry, arena: Tensor):
        self.entry, self.arena, self.engine = entry, arena, engine
        self.context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self.context is None:
            raise EngineError(
                f"{entry.name}: no memory for an execution context; free some or use a smaller profile"
            )
        self.context.set_device_memory(arena.data_ptr(), arena.numel())

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Compute the segment into new tensors."""
        held = {spec.name: inputs[spec.name].contiguous() for spec in self.entry.inputs}
        outputs = new_outputs(self.entry, held, self.arena.device)
        self.enqueue(held, outputs)
        return outputs

    def enqueue(self, inputs: Mapping[str, Tensor], outputs: tuple[Tensor, ...]) -> None:
        """Compute the segment into `outputs`, whose addresses and those of `inputs` are bound as they are."""
        for name, value in inputs.items():
            self.context.set_input_shape(name, tuple(value.shape))
            self.context.set_tensor_address(name, value.data_ptr())
        for spec, value in zip(self.entry.outputs, outputs, strict=True):
            self.context.set_tensor_address(spec.name, value.data_ptr())
        if not self.context.execute_async_v3(torch.cuda.current_stream(self.arena.device).cuda_stream):
            raise EngineError(f"TensorRT failed to run {self.entry.name}; its log above says why")


class Graphed:
    """A segment captured as one CUDA graph per shape: inputs are copied to fixed addresses, outputs copied out."""

    def __init__(self, segment: TensorRTSegment):
        self.segment = segment
        self.captured: dict[tuple[tuple[int, ...], ...], _Capture] = {}

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Replay the graph of these shapes, capturing it the first time."""
        shapes = tuple(tuple(inputs[spec.name].shape) for spec in self.segment.entry.inputs)
        if shapes not in self.captured:
            self.captured[shapes] = _Capture(self.segment, inputs)
        return self.captured[shapes].replay(inputs)


class _Capture:
    def __init__(self, segment: TensorRTSegment, inputs: Mapping[str, Tensor]):
        self.inputs = {
            s.name: inputs[s.name].clone(memory_format=torch.contiguous_format) for s in segment.entry.inputs
        }
        self.outputs = new_outputs(segment.entry, self.inputs, segment.arena.device)
        segment.enqueue(
            self.inputs, self.outputs
        )  # the first run after a change of shape may not be captured
        torch.cuda.synchronize(segment.arena.device)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            segment.enqueue(self.inputs, self.outputs)

    def replay(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        for name, fixed in self.inputs.items():
            fixed.copy_(inputs[name])
        self.graph.replay()
        return tuple(o.clone() for o in self.outputs)
