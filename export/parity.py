"""Does a segment compute what torch computed, on the recorded inputs of every step?"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from cachesmith.export.record import PartCall
from cachesmith.policies import EngineError
from cachesmith.policies.bundle.manifest import Parity
from cachesmith.runtime.engines.segment_call import SegmentCall


class ParityRow(NamedTuple):
    """One recorded call: `error` = ‖engine − torch‖ / ‖torch‖ of the worst output, `max_abs` its largest difference."""

    step: int
    error: float
    max_abs: float


def compare_outputs(samples: Iterable[PartCall], call: SegmentCall, device: torch.device) -> list[ParityRow]:
    """Run `call` on every sample's inputs and compare with the outputs torch gave."""
    return [_row(sample, call, device) for sample in samples]


def judge(name: str, rows: Sequence[ParityRow], tolerance: float) -> Parity:
    """Sum the rows up; raise `EngineError` naming the segment and its first bad step."""
    for row in rows:
        if not row.error <= tolerance:
            raise EngineError(
                f"{name} differs from torch at step {row.step}: relative error {row.error:.2e}, "
                f"allowed {tolerance:.0e}; export in float32 or bfloat16, or report the model"
            )
    worst = max(rows, key=lambda row: row.error)
    largest = max(row.max_abs for row in rows)
    return Parity(steps=len(rows), error=worst.error, max_abs=largest, worst=worst.step, tolerance=tolerance)


def _row(sample: PartCall, call: SegmentCall, device: torch.device) -> ParityRow:
    outputs = call({name: value.to(device) for name, value in sample.inputs.items()})
    errors, largest = [0.0], [0.0]
    for found, expected in zip(outputs, sample.outputs, strict=True):
        reference = expected.double()
        difference = found.cpu().double() - reference
        errors.append(float(difference.norm() / reference.norm().clamp_min(1e-30)))
        largest.append(float(difference.abs().max()))
    # a NaN must not lose against a number
    return ParityRow(sample.step, _largest(errors), _largest(largest))


def _largest(values: list[float]) -> float:
    return float("nan") if any(v != v for v in values) else max(values)
