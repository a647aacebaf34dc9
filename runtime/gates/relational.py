"""RCS while sampling: how well the first unit's input can be forecast (RFC, arXiv 2602.19506)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cachesmith.policies import Relational, Taylor
from cachesmith.policies.rows import forecast_weights
from cachesmith.runtime.features import Feature, alike
from cachesmith.runtime.gates.base import (
    COMPUTE_CALL,
    GateDecision,
    ProbeComputed,
    UnitEntered,
    by_measurement,
    required,
    time_bin,
)
from cachesmith.runtime.models.units import Unit
from cachesmith.runtime.stats import CHANGED_SHAPE
from cachesmith.runtime.tensors.kernels import weighted_sum
from cachesmith.runtime.tensors.norms import accumulate, relative_l1


class RelationalRules:
    """The gate `relational` looks at the first unit's input."""

    probes = compares = False

    def __init__(self, gate: Relational, units: tuple[Unit, ...]):
        self.gate, self.unit = gate, units[0]

    def check(self, units: tuple[Unit, ...]) -> None:
        """Any units serve."""

    def held_bytes(self, sizes: Mapping[str, int], samples: int, shared_inputs: int) -> int:
        """The inputs at `order` + 1 computed steps, and the summed error [B], float32."""
        return sum(sizes.values()) * max(0, self.gate.order + 1 - shared_inputs) + samples * 4

    def state(self, times: tuple[float, ...], start: int) -> "RelationalState":
        """A branch that begins at step `start`."""
        return RelationalState(self.gate, times, start)


@dataclass
class RelationalState:
    """Inputs of the first unit at computed steps (newest first), and the error since the last of them, [B]."""

    gate: Relational
    times: tuple[float, ...]
    start: int
    steps: list[int] = field(default_factory=list)
    inputs: list[Feature] = field(default_factory=list)
    error: Tensor | None = None

    def enter(self, call: UnitEntered) -> GateDecision:
        """Compare the summed error of the most demanding sample with the threshold. Reads one number."""
        last = self.steps[0] if len(self.steps) > 1 else None
        if required(self.gate, len(self.times), last, call.step, self.start):
            return COMPUTE_CALL
        if not alike(self.inputs[0], call.inputs):
            return GateDecision(True, why=CHANGED_SHAPE)
        error = self._error(call)
        self.error = error if self.error is None else self.error + error
        measured = float(self.error.amax())
        return by_measurement(measured, not measured <= self._threshold(call.step))

    def leave(self, call: ProbeComputed) -> None:
        """Remember the input, forget the error, and inputs of another shape."""
        if self.inputs and not alike(self.inputs[0], call.inputs):
            self.steps, self.inputs = [], []
        self.steps = [call.step, *self.steps[: self.gate.order]]
        self.inputs = [call.inputs, *self.inputs[: self.gate.order]]
        self.error = None

    def tensors(self) -> list[Tensor]:
        """Everything that is held."""
        error = [] if self.error is None else [self.error]
        return [tensor for feature in self.inputs for tensor in feature] + error

    def _error(self, call: UnitEntered) -> Tensor:
        """e_I: the relative L1 error of the forecast input, of the worst stream, [B]."""
        past = tuple(self.times[s] for s in self.steps)
        weights = forecast_weights(Taylor(order=self.gate.order), past, self.times[call.step])
        errors = []
        for stream, now in enumerate(call.inputs):
            terms = list(zip(weights, (old[stream] for old in self.inputs), strict=False))
            errors.append(relative_l1(now, weighted_sum(terms, dtype=accumulate(now.dtype))))
        return torch.stack(errors).amax(0)

    def _threshold(self, step: int) -> float:
        return self.gate.thresholds[time_bin(step, len(self.times), len(self.gate.thresholds))]
