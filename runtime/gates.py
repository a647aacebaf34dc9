"""Gates that decide while sampling."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cachesmith.policies import Relational, Taylor
from cachesmith.runtime import rows
from cachesmith.runtime.combine import relative_l1, weighted_sum
from cachesmith.runtime.history import Feature, alike


@dataclass
class RelationalState:
    """RCS on one branch: inputs of the first unit at computed steps (newest first) and the error since the last."""

    steps: list[int] = field(default_factory=list)
    inputs: list[Feature] = field(default_factory=list)
    error: Tensor | None = None

    def restart(self, step: int, inputs: Feature, order: int) -> None:
        """The step is computed: remember its input, forget the error, and inputs of another shape."""
        if self.inputs and not alike(self.inputs[0], inputs):
            self.steps, self.inputs = [], []
        self.steps = [step, *self.steps[:order]]
        self.inputs = [inputs, *self.inputs[:order]]
        self.error = None

    def demand(self, gate: Relational, times: Sequence[float], step: int, inputs: Feature) -> float:
        """Add this step's input error (RFC: e_I, relative L1) and return the sum of the most demanding sample.

        This reads one number from the device.
        """
        past = tuple(times[s] for s in self.steps)
        weights = rows.weights(Taylor(order=gate.order), past, times[step])
        errors = [
            relative_l1(now, weighted_sum(weights, [old[i] for old in self.inputs]))
            for i, now in enumerate(inputs)
        ]
        error = torch.stack(errors).amax(0)
        self.error = error if self.error is None else self.error + error
        return float(self.error.amax())


def must_compute(gate: Relational, state: RelationalState, step: int, start: int, steps: int) -> bool:
    """Whether a rule that reads no tensor asks for a computation: warm-up, tail, longest interval, no history."""
    return (
        step - start < gate.warmup
        or step >= steps - gate.tail
        or len(state.steps) < 2
        or step - state.steps[0] >= gate.max_interval
    )


def threshold(gate: Relational, step: int, steps: int) -> float:
    """The threshold of the part of the trajectory that `step` lies in."""
    parts = len(gate.thresholds)
    return gate.thresholds[min(step * parts // steps, parts - 1)]
