"""One unit's forecast from its history: the formulas of `policies/forecaster.py` on tensors."""

from functools import lru_cache

import torch
from torch import Tensor

from cachesmith.policies import Calibrated, Clusters, Fitted, Forecaster, Mixed, Observed

from .combine import clustered_sum, observed_scale, project, rescale, sample_norm, weighted_sum
from .history import Feature, History
from .plan import Forecast, Plan
from .units import Unit


def observe_scale(forecaster: Forecaster, history: History, outputs: Feature, inputs: Feature) -> None:
    """Before the history moves on: RFE's s of the newest two computed steps, per stream and sample."""
    if isinstance(forecaster.magnitude, Observed | Mixed) and history.fits(inputs):
        history.scales = tuple(
            observed_scale(new, old, moved, before)
            for new, old, moved, before in zip(
                outputs, history.outputs[0], inputs, history.inputs[0], strict=True
            )
        )


class Estimator:
    """Forecasts units under one plan. Holds constants of the policy on the device, no state of the sampling run."""

    def __init__(self, plan: Plan):
        self.plan = plan

    def __call__(self, unit: Unit, decision: Forecast, history: History, inputs: Feature) -> Feature:
        """Return the unit's output at `decision.step`; for block runs this includes the input."""
        return tuple(
            self._stream(unit, stream, decision, history, inputs[stream]) for stream in range(len(inputs))
        )

    def _stream(self, unit: Unit, stream: int, decision: Forecast, history: History, now: Tensor) -> Tensor:
        forecaster = self.plan.forecaster(unit)
        outputs = [output[stream] for output in history.outputs[: len(decision.sources)]]
        base = now if unit.residual else None
        lane = unit.lane + stream
        if isinstance(forecaster.rows, Fitted):
            base = self._input_part(forecaster.rows, lane, decision.step, history, stream, now, base)
        if forecaster.subspace is None and forecaster.magnitude is None:
            return self._sum(forecaster, lane, decision, outputs, base)
        increment = self._sum(forecaster, lane, decision, outputs, None) - outputs[0]
        if forecaster.subspace is not None:
            increment = project(increment, self._constant(forecaster.subspace.basis, lane, now.device))
        if forecaster.magnitude is not None:
            length = self._length(forecaster, lane, stream, decision.step, history, now)
            increment = increment if length is None else rescale(increment, length)
        result = increment.add_(outputs[0])
        return result if base is None else result.add_(base)

    def _sum(
        self, forecaster: Forecaster, lane: int, decision: Forecast, outputs: list[Tensor], base: Tensor | None
    ) -> Tensor:
        match forecaster.rows:
            case Fitted(weights=name):
                return weighted_sum(self._fitted_row(name, lane, decision.step), outputs, base)
            case Clusters(ids=name):
                ids = self._constant(name, lane, outputs[0].device).long()
                table = torch.tensor(decision.clusters, device=outputs[0].device)
                return clustered_sum(table[ids].T, outputs, base)
            case _:
                return weighted_sum(decision.weights, outputs, base)

    def _input_part(
        self, row: Fitted, lane: int, step: int, history: History, stream: int, now: Tensor, base: Tensor | None
    ) -> Tensor | None:
        """Add the fitted weights of past inputs (and, last, of the input now)."""
        if row.input_weights is None:
            return base
        *past, present = self._fitted_row(row.input_weights, lane, step)
        inputs = [feature[stream] for feature in history.inputs[: len(past)]]
        return weighted_sum((present, *past[: len(inputs)]), (now, *inputs), base)

    def _length(
        self, forecaster: Forecaster, lane: int, stream: int, step: int, history: History, now: Tensor
    ) -> Tensor | None:
        """RFE: s |I - I0| per sample; None while s cannot be observed yet."""
        moved = sample_norm(now - history.inputs[0][stream])
        match forecaster.magnitude:
            case Calibrated(scales=name):
                return moved * self._scale(name, lane, step)
            case Mixed(scales=name) if history.scales is not None:
                return moved * history.scales[stream] * self._scale(name, lane, step)
            case Observed() if history.scales is not None:
                return moved * history.scales[stream]
            case _:
                return None

    def _scale(self, name: str, lane: int, step: int) -> float:
        table = self.plan.policy.arrays[name]
        return float(table[lane, self.plan.bin(step, table.shape[1])])

    @lru_cache(maxsize=4096)  # noqa: B019  lives as long as its session
    def _fitted_row(self, name: str, lane: int, step: int) -> tuple[float, ...]:
        return tuple(self.plan.policy.arrays[name][lane, step].tolist())

    @lru_cache(maxsize=1024)  # noqa: B019  lives as long as its session
    def _constant(self, name: str, lane: int, device: torch.device) -> Tensor:
        return torch.from_numpy(self.plan.policy.arrays[name][lane].copy()).to(device)
