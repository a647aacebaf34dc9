"""Change added up since the last computed step: TeaCache (arXiv 2411.19108) and EasyCache (arXiv 2507.02860)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cachesmith.policies import Distance
from cachesmith.runtime.forecast.history import alike
from cachesmith.runtime.forecast.kernels import EPSILON, moved_l1, relative_l1
from cachesmith.runtime.gates.base import Computed, Entered, Verdict, judged, required
from cachesmith.runtime.plan.plan import Plan
from cachesmith.runtime.stats import CHANGED_SHAPE


@dataclass
class DistanceState:
    """The signal of the step before, and the change since the last computed step, [B].

    For EasyCache also signal and output of the last computed step, and K / |y| there, [B].
    """

    plan: Plan
    gate: Distance
    start: int
    last: int | None = None
    seen: Tensor | None = None
    total: Tensor | None = None
    entered: Tensor | None = None
    made: Tensor | None = None
    rate: Tensor | None = None

    def enter(self, call: Entered) -> Verdict:
        """Add this step's change and compare the most demanding sample with the threshold. Reads one number."""
        signal = call.modulated() if self.gate.signal == "modulated" else call.inputs[self.plan.gauge.main]
        before, self.seen = self.seen, signal.contiguous()
        if before is None or required(self.plan, self.gate, self.last, call.step, self.start):
            return Verdict(True)
        if not alike((before,), (signal,)):
            return Verdict(True, why=CHANGED_SHAPE)
        change = self._change(before, signal)
        if change is None:
            return Verdict(True)
        self.total = change if self.total is None else self.total + change
        demand = float(self.total.amax())
        return judged(demand, not demand < self.gate.threshold)

    def leave(self, call: Computed) -> None:
        """Start adding up anew; for EasyCache, observe K."""
        self.last, self.total = call.step, None
        if self.gate.signal == "input":
            self.seen = call.inputs[self.plan.gauge.main]
        if self.gate.per == "output":
            assert self.seen is not None
            self._observe(self.seen, self._output(call))

    def tensors(self) -> list[Tensor]:
        """Every whole feature that is held."""
        return [tensor for tensor in (self.seen, self.entered, self.made) if tensor is not None]

    def _change(self, before: Tensor, now: Tensor) -> Tensor | None:
        if self.gate.per == "signal":
            return polynomial(self.gate.polynomial, relative_l1(before, now))
        if self.rate is None:
            return None
        return polynomial(self.gate.polynomial, self.rate * moved_l1(now, before))

    def _output(self, call: Computed) -> Tensor:
        main, unit = self.plan.gauge.main, self.plan.gauge
        return call.inputs[main] + call.outputs[main] if unit.residual else call.outputs[main]

    def _observe(self, entered: Tensor, made: Tensor) -> None:
        """K / |y| with K = |y - y'| / |x - x'|; sums serve for the means, their sizes cancel."""
        old = None if self.entered is None or self.made is None else (self.entered, self.made)
        fits = old is not None and alike(old, (entered, made))
        self.rate = None
        if old is not None and fits:
            self.rate = relative_l1(made, old[1]) / moved_l1(entered, old[0]).clamp_min(EPSILON)
        self.entered, self.made = entered, made


def polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Value at every x, coefficients highest power first (Horner's scheme)."""
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value
