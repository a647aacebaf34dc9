"""Change added up since the last computed step: TeaCache (arXiv 2411.19108) and EasyCache (arXiv 2507.02860)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cachesmith.policies import Distance, PolicyError
from cachesmith.runtime.features import alike, owned
from cachesmith.runtime.gates.base import (
    COMPUTE_CALL,
    GateDecision,
    ProbeComputed,
    UnitEntered,
    by_measurement,
    required,
)
from cachesmith.runtime.models.units import BlockRun, Unit, image_stream
from cachesmith.runtime.stats import CHANGED_SHAPE
from cachesmith.runtime.tensors.norms import EPSILON, moved_l1, relative_l1


class DistanceRules:
    """The gate `distance` looks at the first unit's image stream."""

    probes = compares = False

    def __init__(self, gate: Distance, units: tuple[Unit, ...]):
        self.gate, self.unit = gate, units[0]

    def check(self, units: tuple[Unit, ...]) -> None:
        """The modulated input has to be known, where the gate reads it."""
        unknown = isinstance(self.unit, BlockRun) and self.unit.entry is None
        if self.gate.signal == "modulated" and unknown:
            raise PolicyError(
                "the modulated input of the first block is not known: its modules are not described in "
                'runtime/models/spans.py, or it is compiled; use a gate with signal="input"'
            )

    def held_bytes(self, sizes: Mapping[str, int], samples: int, shared_inputs: int) -> int:
        """The signal and the summed change [B]; for EasyCache also signal and output of the last computed step."""
        main = sizes[self.unit.streams[image_stream(self.unit)]]
        if self.gate.per == "signal":
            return main + samples * 4
        # the signal of the last computed step may be the input that the forecaster holds anyway
        entered = not (self.gate.signal == "input" and shared_inputs > 0)
        return main * (1 + entered + isinstance(self.unit, BlockRun)) + samples * 8

    def state(self, times: tuple[float, ...], start: int) -> "DistanceState":
        """A branch that begins at step `start`."""
        return DistanceState(self.gate, self.unit, len(times), start)


@dataclass
class DistanceState:
    """The signal of the step before, and the change since the last computed step, [B].

    For EasyCache also signal and output of the last computed step, and K / |y| there, [B].
    """

    gate: Distance
    unit: Unit
    steps: int
    start: int
    last: int | None = None
    signal: Tensor | None = None
    total: Tensor | None = None
    entered: Tensor | None = None
    output: Tensor | None = None
    rate: Tensor | None = None

    def enter(self, call: UnitEntered) -> GateDecision:
        """Add this step's change and compare the most demanding sample with the threshold. Reads one number."""
        modulated = self.gate.signal == "modulated"
        signal = call.modulated() if modulated else call.inputs[image_stream(self.unit)]
        before, (self.signal,) = self.signal, owned((signal.contiguous(),))
        if before is None or required(self.gate, self.steps, self.last, call.step, self.start):
            return COMPUTE_CALL
        if not alike((before,), (signal,)):
            return GateDecision(True, why=CHANGED_SHAPE)
        change = self._change(before, signal)
        if change is None:
            return COMPUTE_CALL
        self.total = change if self.total is None else self.total + change
        measured = float(self.total.amax())
        return by_measurement(measured, not measured < self.gate.threshold)

    def leave(self, call: ProbeComputed) -> None:
        """Start adding up anew; for EasyCache, observe K."""
        self.last, self.total = call.step, None
        stream = image_stream(self.unit)
        if self.gate.signal == "input":
            self.signal = call.inputs[stream]
        if self.gate.per == "output":
            assert self.signal is not None
            base = self.unit.base(call.inputs)
            feature = call.feature[stream]
            self._observe(self.signal, feature if base is None else base[stream] + feature)

    def tensors(self) -> list[Tensor]:
        """Everything that is held."""
        held = (self.signal, self.total, self.entered, self.output, self.rate)
        return [tensor for tensor in held if tensor is not None]

    def _change(self, before: Tensor, now: Tensor) -> Tensor | None:
        if self.gate.per == "signal":
            return polynomial(self.gate.polynomial, relative_l1(before, now))
        if self.rate is None:
            return None
        return polynomial(self.gate.polynomial, self.rate * moved_l1(now, before))

    def _observe(self, entered: Tensor, output: Tensor) -> None:
        """K / |y| with K = |y - y'| / |x - x'|; sums serve for the means, their sizes cancel."""
        before = None if self.entered is None or self.output is None else (self.entered, self.output)
        self.rate = None
        if before is not None and alike(before, (entered, output)):
            change = moved_l1(entered, before[0]).clamp_min(EPSILON)
            self.rate = relative_l1(output, before[1]) / change
        self.entered, self.output = entered, output


def polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Value at every x, coefficients highest power first (Horner's scheme)."""
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value
