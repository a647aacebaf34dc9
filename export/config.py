"""What an export is told."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cachesmith.policies.bundle.manifest import Range, Target

OPSET = 20
"""Newest opset that every TensorRT from 10.13 parses and whose attention it may decompose freely."""

TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 6e-2, "float64": 1e-4}
"""Largest relative error of a segment's output against torch, by the pipeline's dtype."""

PICTURE_RANGE = Range(min=1, opt=1, max=4)

RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")

Report = Callable[[str, int, int], None]
"""Told of progress: what is done, steps done, steps in all."""


@dataclass(frozen=True)
class BuildConfig:
    """How engines are built.

    flags: names of `BuilderFlag`, such as `VERSION_COMPATIBLE`, or `STRIP_PLAN` with `REFIT_IDENTICAL`.
    hardware: a name of `HardwareCompatibilityLevel` (tensorrt). capabilities: GPUs to build for (tensorrt-rtx).
    """

    level: int = 3
    flags: tuple[str, ...] = ()
    hardware: str = "NONE"
    capabilities: tuple[str, ...] = ()
    workspace_gib: float | None = None
    timing_cache: Path | None = None


@dataclass(frozen=True)
class ExportConfig:
    """What is exported and for which inputs.

    profiles: those of the policy that the bundle serves; all by default. segments: how many engines, instead of the
    fewest. requests: pipeline arguments of the calls that are recorded. pictures: how many at once (range).
    tokens: picture tokens (range); by default those of the requests. max_engine_gib: heavier runs of blocks are
    cut. prove: compare every graph with torch; leave it on.
    """

    target: Target = "onnxruntime"
    profiles: tuple[str, ...] = ()
    segments: int | None = None
    blockwise: bool = False
    requests: tuple[dict[str, Any], ...] = ()
    steps: int | None = None
    pictures: Range = PICTURE_RANGE
    tokens: Range | None = None
    opset: int = OPSET
    max_engine_gib: float = 8.0
    prove: bool = True
    build: BuildConfig = field(default_factory=BuildConfig)
