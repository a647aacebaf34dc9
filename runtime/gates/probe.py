"""One unit computed at every step, by which the others are judged: FirstBlockCache, confidence-gated Taylor, SpeCa."""

from dataclasses import dataclass

from torch import Tensor

from cachesmith.policies import Probe
from cachesmith.runtime.forecast.history import Feature
from cachesmith.runtime.forecast.kernels import relative_l1, relative_l2
from cachesmith.runtime.gates.base import Computed, Entered, Verdict, judged, required
from cachesmith.runtime.plan.plan import Plan
from cachesmith.runtime.stats import CHANGED_SHAPE


@dataclass
class ProbeState:
    """The last step at which all was computed, and the error [B] that a last probe left for the next step."""

    plan: Plan
    gate: Probe
    start: int
    last: int | None = None
    error: Tensor | None = None

    def enter(self, call: Entered) -> Verdict | None:
        """Decide by rules, or by the error the last probe left; a first probe decides in `leave`."""
        if self.last is None or required(self.plan, self.gate, self.last, call.step, self.start):
            return self._settled(call.step, Verdict(True))
        if call.step - self.last < self.gate.min_interval:
            return Verdict(False)
        if self.gate.place == "first":
            return None
        return self._settled(call.step, self._judge(call.step, self.error))

    def leave(self, call: Computed) -> Verdict | None:
        """Measure the probe against what was expected of it, unless everything is computed anyway."""
        late = self.gate.place == "last"
        if self.last is None or self.last == call.step:
            self.error = None
            return None
        if call.step + late - self.last < self.gate.min_interval:
            return None
        expected = self._expected(call)
        if late:
            self.error = None if expected is None else self._distance(call.outputs, expected)
            # forecasts that nothing verifies are not to be trusted: the next step is computed
            self.last = None if expected is None else self.last
            return None
        if expected is None:
            return self._settled(call.step, Verdict(True, why=CHANGED_SHAPE if call.history.steps else None))
        return self._settled(call.step, self._judge(call.step, self._distance(call.outputs, expected)))

    def tensors(self) -> list[Tensor]:
        """No whole feature is held: the probe is compared with its own history."""
        return []

    def _settled(self, step: int, verdict: Verdict) -> Verdict:
        if verdict.compute:
            self.last = step
        return verdict

    def _expected(self, call: Computed) -> Feature | None:
        if not call.history.fits(call.inputs):
            return None
        return call.history.outputs[0] if self.gate.against == "last" else call.forecast()

    def _distance(self, outputs: Feature, expected: Feature) -> Tensor:
        """The relative distance of the image stream, [B]; relative to the older output, or else to the true one."""
        main = self.plan.gauge.main
        pair = (
            (expected[main], outputs[main])
            if self.gate.against == "last"
            else (outputs[main], expected[main])
        )
        return relative_l1(*pair) if self.gate.norm == "l1" else relative_l2(*pair)

    def _judge(self, step: int, error: Tensor | None) -> Verdict:
        demand = 0.0 if error is None else float(error.amax())
        limit = max(self.gate.threshold * self.gate.decay ** (step / self.plan.steps), self.gate.floor)
        return judged(demand, not demand < limit)
