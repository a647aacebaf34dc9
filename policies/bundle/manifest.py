"""The manifest of an exported bundle: what its engines compute, what they were made with, and every file's hash."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from cachesmith.files import open_plain
from cachesmith.policies.base import MAIN, NAME_PATTERN, Frozen, Grown, Name, Sha256
from cachesmith.policies.document import ModelKey
from cachesmith.policies.errors import EngineError, PolicyError, explain
from cachesmith.policies.file.strict_json import parse_object

MANIFEST = "manifest.json"
BUNDLE_FORMAT = 1
"""The version this code writes and reads."""
MOST_SEGMENTS = 1000
LARGEST, MOST_VALUES = 1 << 22, 100_000
"""Bytes of a manifest, and values in it; one of 1000 segments has half of both."""
MOST_AXES, MOST_DENOISERS = 8, 8

Target = Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
DType = Literal["float32", "float16", "bfloat16", "float64", "int64", "int32", "bool"]
FileName = Annotated[str, Field(pattern=NAME_PATTERN.replace("79", "159"))]
"""A file directly inside the bundle: no slash, no leading dot."""
_Extent = Annotated[int, Field(ge=1, le=1 << 31)]
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+:-]{0,159}$")]
"""A tensor, axis, module, tool or version: nothing a terminal or a table could take for an instruction."""
Version = Annotated[str, StringConstraints(pattern=r"^\d{1,6}(\.[A-Za-z0-9_.+-]{1,80})?$")]
"""Of TensorRT or CUDA: begins with the number of the major version."""
Product = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\x20-\x7e]{0,159}$")]
"""What a GPU calls itself."""


class FileEntry(Frozen):
    """One file of the bundle."""

    name: FileName
    size: Annotated[int, Field(ge=0, le=1 << 40)]
    sha256: Sha256


class TensorSpec(Frozen):
    """An input or output. `axes` holds a fixed extent, or the name of a variable one such as `batch`."""

    name: Label
    dtype: DType
    axes: tuple[_Extent | Label, ...] = Field(max_length=MOST_AXES)


class Range(Frozen):
    """Extents of a variable axis an engine accepts, and the one it is tuned for."""

    min: _Extent
    opt: _Extent
    max: _Extent

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if not self.min <= self.opt <= self.max:
            raise ValueError("must ascend from min over opt to max")
        return self


class Parity(Frozen):
    """Largest difference from torch over all recorded steps. `error` = ‖engine − torch‖ / ‖torch‖, at step `worst`."""

    steps: Annotated[int, Field(ge=1)]
    error: Annotated[float, Field(ge=0)]
    max_abs: Annotated[float, Field(ge=0)]
    worst: Annotated[int, Field(ge=0)]
    tolerance: Annotated[float, Field(gt=0)]


class SegmentEntry(Grown):
    """Blocks `start` to `stop` of a denoiser as one graph; with `module`, that submodule of block `start` only.

    `constants` are arguments that are no tensors, by name: the graph was made for these. `key` is a digest of
    everything the ONNX graph depends on, `engine_key` of everything the engine depends on.
    """

    LATER = ("constants", "denoiser")

    name: Name
    denoiser: Name = MAIN
    start: Annotated[int, Field(ge=0)]
    stop: Annotated[int, Field(ge=1)]
    module: Label | None = None
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    ranges: dict[Label, Range]
    key: Sha256
    onnx: FileEntry
    data: FileEntry | None = None
    engine: FileEntry | None = None
    engine_key: Sha256 | None = None
    parity: Parity | None = None
    constants: dict[Label, bool | int | float | Label] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.start >= self.stop:
            raise ValueError(f"blocks {self.start} to {self.stop} are no range")
        axes = _variable(self.inputs)
        if new := sorted(_variable(self.outputs) - axes):
            raise ValueError(f"an output has the axis {new[0]}, which no input has")
        if axes != set(self.ranges):
            raise ValueError(f"ranges are given for {sorted(self.ranges)}, but the axes are {sorted(axes)}")
        if twice := _repeated(t.name for t in (*self.inputs, *self.outputs)):
            raise ValueError(f"two tensors are called {twice}")
        if (self.engine is None) != (self.engine_key is None):
            raise ValueError("an engine and its engine_key belong together, one of them is missing")
        return self

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """All files of the segment."""
        return tuple(f for f in (self.onnx, self.data, self.engine) if f is not None)


class Build(Frozen):
    """What the engines were built with and for. Flags by name: their numbers differ between TensorRT versions."""

    version: Version
    cuda: Version | None = None
    gpu: Product | None = None
    capabilities: tuple[Annotated[str, Field(pattern=r"^\d{1,2}\.\d$")], ...] = Field(min_length=1)
    level: Annotated[int, Field(ge=0, le=5)]
    flags: tuple[Name, ...] = ()
    hardware: Name = "NONE"
    workspace_gib: Annotated[float, Field(gt=0)] | None = None


class Manifest(Grown):
    """A bundle: segments, in execution order, of one pipeline at one dtype.

    `model` is its first denoiser, `models` are those after it that have segments, by the pipeline's names of them.
    """

    LATER = ("models",)

    format: Literal[1] = 1
    target: Target
    policy_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    policy_name: Name
    model: ModelKey
    models: dict[Name, ModelKey] = Field(default_factory=dict, max_length=MOST_DENOISERS)
    dtype: DType
    opset: Annotated[int, Field(ge=17, le=99)]
    versions: dict[Label, Label]
    segments: tuple[SegmentEntry, ...] = Field(min_length=1, max_length=MOST_SEGMENTS)
    build: Build | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if _repeated(f.name for s in self.segments for f in s.files):
            raise ValueError("one file belongs to two segments")
        if twice := _repeated(s.name for s in self.segments):
            raise ValueError(f"two segments are called {twice}")
        denoisers = {**self.models, MAIN: self.model}
        if unknown := sorted({s.denoiser for s in self.segments} - {*denoisers}):
            raise ValueError(f"a segment is of {unknown[0]}, which no model is given for")
        for name, model in denoisers.items():
            _check_blocks(self.of(name), model.blocks)
        built = [s.engine is not None for s in self.segments]
        if self.target != "onnxruntime" and (self.build is None or not all(built)):
            raise ValueError(f"target {self.target} needs build facts and an engine for every segment")
        return self

    def of(self, denoiser: str) -> tuple[SegmentEntry, ...]:
        """The segments of one denoiser."""
        return tuple(segment for segment in self.segments if segment.denoiser == denoiser)


def _variable(specs: Iterable[TensorSpec]) -> set[str]:
    return {axis for spec in specs for axis in spec.axes if isinstance(axis, str)}


def _repeated(names: Iterable[str]) -> str | None:
    """Return the first name that is there twice."""
    return next((name for name, times in Counter(names).items() if times > 1), None)


def _check_blocks(segments: tuple[SegmentEntry, ...], blocks: int) -> None:
    """Every block, or submodule of a block, is in one segment at most."""
    for s in segments:
        if s.stop > blocks:
            raise ValueError(f"{s.name} ends at block {s.stop}, the model has {blocks}")
    runs = sorted((s for s in segments if s.module is None), key=lambda s: s.start)
    for a, b in pairwise(runs):
        if b.start < a.stop:
            raise ValueError(f"{a.name} and {b.name} overlap")
    if twice := _repeated(f"{s.module} of block {s.start}" for s in segments if s.module is not None):
        raise ValueError(f"two segments are {twice}")


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as indented JSON with sorted keys: equal manifests give equal bytes."""
    return (json.dumps(manifest.model_dump(mode="json"), sort_keys=True, indent=1) + "\n").encode()


def bundle_id(manifest: Manifest) -> str:
    """First 16 hex digits of a sha256 over the manifest, and so over every file's hash."""
    return hashlib.sha256(encode_manifest(manifest)).hexdigest()[:16]


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read a bundle's manifest, not its files; anything wrong with it is an `EngineError`."""
    path = Path(folder) / MANIFEST
    data = _content(path)
    try:
        found = parse_object(data, "the manifest", MOST_VALUES).get("format")
        if type(found) is not int or found != BUNDLE_FORMAT:
            raise EngineError(
                f"{path} has format {str(found)[:40]!r}, this cachesmith reads {BUNDLE_FORMAT}; "
                "install the cachesmith that wrote it or export again"
            )
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise EngineError(f"{path} is not a valid manifest: {explain(error)}; export again") from None
    except PolicyError as error:
        raise EngineError(f"cannot read {path}: {error}; export again") from None


def _content(path: Path) -> bytes:
    try:
        with open_plain(path, follow=False) as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise EngineError(
            f"cannot read {path}: {error.strerror}; give the folder that `cachesmith export --out` wrote"
        ) from None
    except ValueError as error:
        raise EngineError(f"cannot read {str(path)!r}: {error}; check the path") from None
    if len(data) > LARGEST:
        raise EngineError(f"{path} has more than {LARGEST:,} bytes and is no manifest; export again")
    return data
