"""Prove a part's ONNX graph against torch in ONNX Runtime on the CPU."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from cachesmith.export.bundle_writer import take_file
from cachesmith.export.parity import ParityRow, compare_outputs
from cachesmith.export.record import PartCall
from cachesmith.export.widen import widen
from cachesmith.policies.bundle.files import describe_file
from cachesmith.policies.bundle.manifest import SegmentEntry, TensorSpec
from cachesmith.runtime.engines.onnxruntime_backend import open_segment
from cachesmith.runtime.engines.segment_call import LoadOptions

CPU = LoadOptions(torch.device("cpu"))


def prove(entry: SegmentEntry, samples: Sequence[PartCall], folder: Path) -> list[ParityRow]:
    """Return one row a sample. A bfloat16 graph runs as its float32 twin: that CPU has no kernels for it."""
    if not any(spec.dtype == "bfloat16" for spec in (*entry.inputs, *entry.outputs)):
        return compare_outputs(samples, open_segment(folder, entry, CPU), CPU.device)
    with TemporaryDirectory(dir=folder) as twin:
        widen(folder / entry.onnx.name, Path(twin) / entry.onnx.name)
        wide = _wide_entry(entry, Path(twin))
        return compare_outputs(
            [_widened(s) for s in samples], open_segment(Path(twin), wide, CPU), CPU.device
        )


def _wide_entry(entry: SegmentEntry, folder: Path) -> SegmentEntry:
    name = entry.onnx.name
    files = {"onnx": describe_file(folder / name), "data": take_file(folder, f"{name}.data")}
    return entry.model_copy(update={**files, "inputs": _wide(entry.inputs), "outputs": _wide(entry.outputs)})


def _wide(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(s.model_copy(update={"dtype": "float32"}) if s.dtype == "bfloat16" else s for s in specs)


def _widened(sample: PartCall) -> PartCall:
    narrow = torch.bfloat16
    return sample._replace(
        inputs={k: v.float() if v.dtype == narrow else v for k, v in sample.inputs.items()}
    )
