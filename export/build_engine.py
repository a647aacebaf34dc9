"""ONNX to engine, by TensorRT or TensorRT for RTX: two products with one API, and moving flag numbers."""

import re
from pathlib import Path
from typing import Any

import torch

from cachesmith.export.config import RTX_CAPABILITIES, BuildConfig, Report
from cachesmith.files import write_atomically
from cachesmith.policies import EngineError
from cachesmith.policies.bundle.manifest import Build, Range, SegmentEntry
from cachesmith.runtime.engines.tensorrt_version import tensorrt_module


def plan_build(target: str, config: BuildConfig) -> Build:
    """Settle how engines are built here; raise `EngineError` for what this TensorRT or machine cannot do."""
    trt = tensorrt_module(target)
    for flag in config.flags:
        _member(trt, "BuilderFlag", flag)
    _member(trt, "HardwareCompatibilityLevel", config.hardware)
    if target == "tensorrt-rtx" and config.timing_cache is not None:
        raise EngineError("tensorrt-rtx takes no timings at build time; leave --timing-cache out")
    return Build(
        version=trt.__version__,
        cuda=torch.version.cuda,
        capabilities=_portable(trt, config) if target == "tensorrt-rtx" else _here(config),
        gpu=torch.cuda.get_device_name() if target == "tensorrt" else None,
        level=config.level,
        flags=tuple(sorted(config.flags)),
        hardware=config.hardware,
        workspace_gib=config.workspace_gib,
    )


def _portable(trt: Any, config: BuildConfig) -> tuple[str, ...]:
    """The compute capabilities that tensorrt-rtx is to build for."""
    found = tuple(dict.fromkeys(text.strip() for text in config.capabilities or RTX_CAPABILITIES))
    for capability in found:
        if not re.fullmatch(r"\d{1,2}\.\d", capability):
            raise EngineError(
                f"{capability[:40]!r} is no compute capability; write numbers such as 8.9, and commas between them"
            )
        _member(trt, "ComputeCapability", _sm(capability))
    return found


def _here(config: BuildConfig) -> tuple[str, ...]:
    """The compute capability of this GPU, the one that tensorrt builds for."""
    if not torch.cuda.is_available():
        raise EngineError(
            "tensorrt builds engines on the GPU they are for, and there is none here; export there, or use "
            "--target tensorrt-rtx or onnxruntime"
        )
    if config.capabilities:
        raise EngineError("--compute-capability is for tensorrt-rtx; tensorrt builds for the GPU it runs on")
    return (".".join(map(str, torch.cuda.get_device_capability())),)


def build_engine(
    entry: SegmentEntry, onnx: Path, target: str, build: Build, config: BuildConfig, report: Report
) -> bytes:
    """Return the serialised engine of one segment; raise `EngineError` with the parser's or builder's words.

    Ctrl-C stops the build between two tactics.
    """
    trt = tensorrt_module(target)
    log = _Log(trt)
    builder = trt.Builder(log.logger)
    network, _parser = parse_graph(trt, builder, onnx, log)
    settings = builder.create_builder_config()
    configure(trt, settings, target, build)
    if settings.add_optimization_profile(_profile(builder, network, entry)) < 0:
        raise EngineError(
            f"{trt.__name__} refuses the shapes of {entry.name} ({log.last}); change --pictures or --tokens"
        )
    cache = _timing_cache(settings, config.timing_cache)
    monitor = _monitor(trt, report)
    settings.progress_monitor = monitor
    plan = builder.build_serialized_network(network, settings)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise EngineError(
            f"{trt.__name__} cannot build {entry.name}: {log.last}; try another --opset or --dtype"
        )
    if cache is not None and config.timing_cache is not None:
        save_timings(config.timing_cache, cache)
    return bytes(plan)


def parse_graph(trt: Any, builder: Any, onnx: Path, log: "_Log | None" = None) -> tuple[Any, Any]:
    """Return the strongly typed network in `onnx`, and its parser, which owns the weights and must live as long.

    Raises `EngineError` naming the first node that is not understood.
    """
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, (log or _Log(trt)).logger)
    if not parser.parse_from_file(str(onnx)):
        first = str(parser.get_error(0)) if parser.num_errors else "no reason given"
        raise EngineError(f"{trt.__name__} cannot read {onnx.name}: {first[:300]}; try a lower --opset")
    return network, parser


def _network_flags(trt: Any) -> int:
    """From 11 on every network is strongly typed and the flag has no effect; before, it must be set."""
    major = int(trt.__version__.split(".", 1)[0])
    if trt.__name__ == "tensorrt" and major >= 11:
        return 0
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def configure(trt: Any, settings: Any, target: str, build: Build) -> None:
    """Apply `build` to a builder configuration. TF32, on by default, is off unless it is among the flags."""
    settings.builder_optimization_level = build.level
    if "TF32" in trt.BuilderFlag.__members__:
        settings.clear_flag(trt.BuilderFlag.TF32)
    for flag in build.flags:
        settings.set_flag(_member(trt, "BuilderFlag", flag))
    if build.hardware != "NONE":
        settings.hardware_compatibility_level = _member(trt, "HardwareCompatibilityLevel", build.hardware)
    if build.workspace_gib is not None:
        settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(build.workspace_gib * 2**30))
    if target == "tensorrt-rtx":
        settings.num_compute_capabilities = len(build.capabilities)
        for place, capability in enumerate(build.capabilities):
            settings.set_compute_capability(_member(trt, "ComputeCapability", _sm(capability)), place)


def _profile(builder: Any, network: Any, entry: SegmentEntry) -> Any:
    profile = builder.create_optimization_profile()
    present = {network.get_input(i).name for i in range(network.num_inputs)}
    for spec in entry.inputs:
        if spec.name in present:
            profile.set_shape(
                spec.name, *(_shape(spec.axes, entry.ranges, end) for end in ("min", "opt", "max"))
            )
    return profile


def _shape(axes: tuple[int | str, ...], ranges: dict[str, Range], end: str) -> tuple[int, ...]:
    return tuple(getattr(ranges[axis], end) if isinstance(axis, str) else axis for axis in axes)


def _timing_cache(settings: Any, path: Path | None) -> Any:
    if path is None:
        return None
    known = path.read_bytes() if path.is_file() else b""
    cache = settings.create_timing_cache(known)
    if cache is None:
        raise EngineError(f"{path} is not a timing cache of this TensorRT; delete it or name another")
    settings.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def save_timings(path: Path, cache: Any) -> None:
    """Keep what this build has timed, for the next one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, bytes(cache.serialize()))


def _member(trt: Any, enum: str, name: str) -> Any:
    """Look an enum member up by name: numbers moved between versions, members came and went."""
    members = getattr(trt, enum).__members__
    if name not in members:
        raise EngineError(
            f"{trt.__name__} {trt.__version__} has no {enum}.{name}; it has {', '.join(members)}"
        )
    return members[name]


def _sm(capability: str) -> str:
    return "SM" + capability.replace(".", "")


class _Log:
    """A TensorRT logger that keeps the last error instead of printing."""

    def __init__(self, trt: Any):
        severities = trt.ILogger.Severity
        lines = self._errors = ["no reason given"]

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (severities.ERROR, severities.INTERNAL_ERROR):
                    lines.append(message.strip()[:300])

        self.logger = Logger()

    @property
    def last(self) -> str:
        """The last error."""
        return self._errors[-1]


def _monitor(trt: Any, report: Report) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Passes TensorRT's phases on. Exceptions may not pass through it, so Ctrl-C is noted and stops the build."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self.totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.totals[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                report(phase_name, step + 1, self.totals.get(phase_name, 0))
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            self.totals.pop(phase_name, None)

    return Monitor()
