"""Segments in ONNX Runtime: on the CPU, or on CUDA and TensorRT execution providers.

Tensors are bound by address, so nothing is copied to the host. Seen working on the CPU; see docs/export.md.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cachesmith.policies import EngineError
from cachesmith.policies.bundle.files import Graph, read_graph
from cachesmith.policies.bundle.manifest import Manifest, SegmentEntry
from cachesmith.policies.errors import one_line
from cachesmith.runtime.engines.segment_call import LoadOptions, Port, SegmentCall, check_ports, new_outputs
from cachesmith.runtime.engines.side_stream import aside

ELEMENT_TYPES = {
    torch.float32: 1, torch.int32: 6, torch.int64: 7, torch.bool: 9, torch.float16: 10, torch.float64: 11,
    torch.bfloat16: 16,
}  # fmt: skip
"""Numbers of `onnx.TensorProto.DataType`."""

ONNXRUNTIME_DTYPES = {
    "tensor(float)": "float32", "tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(bool)": "bool",
    "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(bfloat16)": "bfloat16",
}  # fmt: skip
"""What ONNX Runtime calls the dtypes of a manifest."""


def open_onnxruntime(
    folder: Path, manifest: Manifest, options: LoadOptions, tensorrt: bool = False
) -> dict[str, SegmentCall]:
    """Load every segment's ONNX graph. `tensorrt`: prefer the TensorRT execution provider, which needs a GPU."""
    if tensorrt and options.device.type != "cuda":
        raise EngineError(
            f"backend onnxruntime-tensorrt needs an NVIDIA GPU and the model is on {options.device}; move the pipeline "
            "to cuda, or choose backend onnxruntime"
        )
    return {entry.name: open_segment(folder, entry, options, tensorrt) for entry in manifest.segments}


def open_segment(
    folder: Path, entry: SegmentEntry, options: LoadOptions, tensorrt: bool = False
) -> SegmentCall:
    """Load one segment's ONNX graph from the bytes that were verified.

    Raises `EngineError` when a file is not the exported one, or when ONNX Runtime or the provider cannot take it.
    """
    ort = onnxruntime_module()
    graph = read_graph(folder, entry)
    wanted: list[tuple[str, dict[str, str]]] = [("CPUExecutionProvider", {})]
    stream = None
    if options.device.type == "cuda":
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # finds the CUDA libraries that pip installed
        stream = torch.cuda.Stream(options.device)  # type: ignore[no-untyped-call]
        wanted = [*_gpu_providers(entry, options.device, stream, tensorrt), *wanted]
    session = _session(ort, entry, graph, wanted)
    _require(session, [name for name, _ in wanted])
    check_ports(entry, _ports(session), unused=False)
    return OnnxSegment(session, entry, options.device, stream)


def _session(ort: Any, entry: SegmentEntry, graph: Graph, providers: list[tuple[str, dict[str, str]]]) -> Any:
    """Make a session that opens no file: what lies in the folder may have changed since it was verified."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4  # what fails is raised, too
    try:
        if graph.data is not None and entry.data is not None:
            settings.add_external_initializers_from_files_in_memory(
                [entry.data.name], [graph.data], [len(graph.data)]
            )
        return ort.InferenceSession(graph.onnx, settings, providers=providers)
    except Exception as error:  # its error types have no common base
        raise EngineError(f"ONNX Runtime cannot run {entry.onnx.name}: {one_line(error)}") from None


def _ports(session: Any) -> list[Port]:
    inputs = [_port(value, "input") for value in session.get_inputs()]
    return inputs + [_port(value, "output") for value in session.get_outputs()]


def _port(value: Any, side: Literal["input", "output"]) -> Port:
    # a shape of no axes is a number, or one that the graph does not tell
    axes = tuple(extent if isinstance(extent, int) else None for extent in value.shape)
    return Port(value.name, side, ONNXRUNTIME_DTYPES.get(value.type, value.type), axes or None)


def onnxruntime_module() -> Any:
    """Import ONNX Runtime; raise `EngineError` naming the extra to install."""
    try:
        import onnxruntime
    except ImportError:
        raise EngineError("ONNX Runtime is not installed; pip install 'cachesmith[export]'") from None
    return onnxruntime


def _require(session: Any, wanted: list[str]) -> None:
    """Refuse what ONNX Runtime does silently: go on without a provider whose libraries do not load."""
    present = session.get_providers()
    for provider in wanted:
        if provider not in present:
            raise EngineError(
                f"ONNX Runtime could not start {provider} (it started {', '.join(present)}); install onnxruntime-gpu "
                "with the CUDA, cuDNN or TensorRT libraries it names, or choose another backend or the CPU"
            )


def _gpu_providers(
    entry: SegmentEntry, device: torch.device, stream: torch.cuda.Stream, tensorrt: bool
) -> list[tuple[str, dict[str, str]]]:
    common = {"device_id": str(device.index or 0), "user_compute_stream": str(stream.cuda_stream)}
    # float32 is to be float32; the provider's default is TF32
    providers = [("CUDAExecutionProvider", {**common, "use_tf32": "0"})]
    if tensorrt:
        shapes = {f"trt_profile_{end}_shapes": _profile(entry, end) for end in ("min", "opt", "max")}
        providers.insert(0, ("TensorrtExecutionProvider", {**common, **shapes}))
    return providers


def _profile(entry: SegmentEntry, end: str) -> str:
    def extent(axis: int | str) -> str:
        return str(getattr(entry.ranges[axis], end) if isinstance(axis, str) else axis)

    return ",".join(f"{spec.name}:{'x'.join(extent(a) for a in spec.axes)}" for spec in entry.inputs)


class OnnxSegment:
    """One ONNX Runtime session. On a GPU it has a stream of its own, ordered with the caller's by events."""

    def __init__(
        self, session: Any, entry: SegmentEntry, device: torch.device, stream: torch.cuda.Stream | None
    ):
        self.session, self.entry, self.device, self.stream = session, entry, device, stream

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Compute the segment on the inputs' device."""
        held = {spec.name: inputs[spec.name].contiguous() for spec in self.entry.inputs}
        outputs = new_outputs(self.entry, held, self.device)
        binding = self.session.io_binding()
        for name, value in held.items():
            binding.bind_input(name, *self._address(value))
        for spec, value in zip(self.entry.outputs, outputs, strict=True):
            binding.bind_output(spec.name, *self._address(value))
        try:
            self._run(binding, (*held.values(), *outputs))
        except Exception as error:  # its error types have no common base
            raise EngineError(
                f"{self.entry.name} failed in ONNX Runtime: {one_line(error)}; export again, or "
                "run without the bundle"
            ) from None
        return outputs

    def _address(self, value: Tensor) -> tuple[str, int, int, list[int], int]:
        return (
            self.device.type,
            self.device.index or 0,
            ELEMENT_TYPES[value.dtype],
            list(value.shape),
            value.data_ptr(),
        )

    def _run(self, binding: Any, tensors: tuple[Tensor, ...]) -> None:
        if self.stream is None:
            self.session.run_with_iobinding(binding)
            return
        options = onnxruntime_module().RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        with aside(self.stream, tensors):
            self.session.run_with_iobinding(binding, options)
