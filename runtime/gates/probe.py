"""One unit computed at every step, by which the others are judged: FirstBlockCache, confidence-gated Taylor, SpeCa."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from cachesmith.policies import PolicyError, Probe
from cachesmith.runtime.features import Feature
from cachesmith.runtime.gates.base import (
    COMPUTE_CALL,
    GateDecision,
    ProbeComputed,
    UnitEntered,
    by_measurement,
    required,
)
from cachesmith.runtime.models.units import Unit, image_stream
from cachesmith.runtime.stats import CHANGED_SHAPE
from cachesmith.runtime.tensors.norms import relative_l1, relative_l2


class ProbeRules:
    """The gate `probe` looks at the first unit or the last."""

    probes = True

    def __init__(self, gate: Probe, units: tuple[Unit, ...]):
        self.gate, self.unit = gate, units[-1 if gate.place == "last" else 0]
        self.compares = gate.against == "last"

    def check(self, units: tuple[Unit, ...]) -> None:
        """There has to be a unit that the probe can judge."""
        if len(units) < 2:
            raise PolicyError(
                "the gate `probe` computes one unit and forecasts the others, but there is only one; use units "
                "`segment` with two or more starts"
            )

    def held_bytes(self, sizes: Mapping[str, int], samples: int, shared_inputs: int) -> int:
        """The probe is compared with its own history; a last one leaves its error [B] for the next step."""
        return samples * 4 if self.gate.place == "last" else 0

    def state(self, times: tuple[float, ...], start: int) -> "ProbeState":
        """A branch that begins at step `start`."""
        return ProbeState(self.gate, self.unit, len(times), start)


@dataclass
class ProbeState:
    """The last step at which all was computed, and the error [B] that a last probe left for the next step."""

    gate: Probe
    unit: Unit
    steps: int
    start: int
    last: int | None = None
    error: Tensor | None = None

    def enter(self, call: UnitEntered) -> GateDecision | None:
        """Decide by rules, or by the error the last probe left; a first probe decides in `leave`."""
        if self.last is None or required(self.gate, self.steps, self.last, call.step, self.start):
            return self._settled(call.step, COMPUTE_CALL)
        if call.step - self.last < self.gate.min_interval:
            return GateDecision(False)
        if self.gate.place == "first":
            return None
        return self._settled(call.step, self._by_error(call.step, self.error))

    def leave(self, call: ProbeComputed) -> GateDecision | None:
        """Measure the probe against what was expected of it, unless everything is computed anyway."""
        late = self.gate.place == "last"
        if self.last is None or self.last == call.step:
            self.error = None
            return None
        if call.step + late - self.last < self.gate.min_interval:
            return None
        last = call.last()
        expected = last if self.gate.against == "last" or last is None else call.forecast()
        if late:
            self.error = None if expected is None else self._distance(call.feature, expected)
            # forecasts that nothing verifies are not to be trusted: the next step is computed
            self.last = None if expected is None else self.last
            return None
        if expected is None:
            why = CHANGED_SHAPE if call.changed else None
            return self._settled(call.step, GateDecision(True, why=why))
        return self._settled(call.step, self._by_error(call.step, self._distance(call.feature, expected)))

    def tensors(self) -> list[Tensor]:
        """Everything that is held."""
        return [] if self.error is None else [self.error]

    def _settled(self, step: int, decision: GateDecision) -> GateDecision:
        if decision.compute:
            self.last = step
        return decision

    def _distance(self, feature: Feature, expected: Feature) -> Tensor:
        """The relative distance of the image stream, [B]; relative to the older feature, or else to the true one."""
        stream = image_stream(self.unit)
        before_after = (expected[stream], feature[stream])
        pair = before_after if self.gate.against == "last" else before_after[::-1]
        return relative_l1(*pair) if self.gate.norm == "l1" else relative_l2(*pair)

    def _by_error(self, step: int, error: Tensor | None) -> GateDecision:
        measured = 0.0 if error is None else float(error.amax())
        limit = max(self.gate.threshold * self.gate.decay ** (step / self.steps), self.gate.floor)
        return by_measurement(measured, not measured < limit)
