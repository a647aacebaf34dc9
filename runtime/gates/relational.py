"""RCS while sampling: how well the first unit's input can be forecast (RFC, arXiv 2602.19506)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cachesmith.policies import Relational, Taylor
from cachesmith.policies.weights import forecast_weights
from cachesmith.runtime.forecast.history import Feature, alike
from cachesmith.runtime.forecast.kernels import relative_l1, weighted_sum
from cachesmith.runtime.gates.base import Computed, Entered, Verdict, judged, required
from cachesmith.runtime.plan.plan import Plan
from cachesmith.runtime.stats import CHANGED_SHAPE


@dataclass
class RelationalState:
    """Inputs of the first unit at computed steps (newest first), and the error since the last of them, [B]."""

    plan: Plan
    gate: Relational
    start: int
    steps: list[int] = field(default_factory=list)
    inputs: list[Feature] = field(default_factory=list)
    error: Tensor | None = None

    def enter(self, call: Entered) -> Verdict:
        """Compare the summed error of the most demanding sample with the threshold. Reads one number."""
        last = self.steps[0] if len(self.steps) > 1 else None
        if required(self.plan, self.gate, last, call.step, self.start):
            return Verdict(True)
        if not alike(self.inputs[0], call.inputs):
            return Verdict(True, why=CHANGED_SHAPE)
        error = self._error(call)
        self.error = error if self.error is None else self.error + error
        demand = float(self.error.amax())
        return judged(demand, not demand <= self._threshold(call.step))

    def leave(self, call: Computed) -> None:
        """Remember the input, forget the error, and inputs of another shape."""
        if self.inputs and not alike(self.inputs[0], call.inputs):
            self.steps, self.inputs = [], []
        self.steps = [call.step, *self.steps[: self.gate.order]]
        self.inputs = [call.inputs, *self.inputs[: self.gate.order]]
        self.error = None

    def tensors(self) -> list[Tensor]:
        """Every whole feature that is held."""
        return [tensor for feature in self.inputs for tensor in feature]

    def _error(self, call: Entered) -> Tensor:
        """e_I: the relative L1 error of the forecast input, of the worst stream, [B]."""
        past = tuple(self.plan.times[s] for s in self.steps)
        weights = forecast_weights(Taylor(order=self.gate.order), past, self.plan.times[call.step])
        errors = [
            relative_l1(now, weighted_sum(weights, [old[i] for old in self.inputs]))
            for i, now in enumerate(call.inputs)
        ]
        return torch.stack(errors).amax(0)

    def _threshold(self, step: int) -> float:
        return self.gate.thresholds[self.plan.bin(step, len(self.gate.thresholds))]
