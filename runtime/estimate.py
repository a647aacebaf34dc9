"""One unit's forecast from its history: the formulas of `policies/forecaster.py` on tensors."""

import torch
from torch import Tensor

from cachesmith.policies import Band, Calibrated, Clusters, Fitted, Forecaster, Magnitude, Mixed, Observed
from cachesmith.runtime.combine import (
    clustered_sum,
    high_pass,
    high_pass_grid,
    observed_scale,
    project,
    rescale,
    sample_norm,
    weighted_sum,
)
from cachesmith.runtime.history import Feature, History
from cachesmith.runtime.plan import Forecast, Plan
from cachesmith.runtime.units import Unit


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
        self._constants: dict[tuple[str, int, torch.device], Tensor] = {}

    def __call__(self, unit: Unit, decision: Forecast, history: History, inputs: Feature) -> Feature:
        """Return the unit's output at `decision.step`; for block runs this includes the input."""
        return tuple(
            self._stream(unit, stream, decision, history, inputs[stream]).to(inputs[stream].dtype)
            for stream in range(len(inputs))
        )

    def _stream(self, unit: Unit, stream: int, decision: Forecast, history: History, now: Tensor) -> Tensor:
        forecaster = self.plan.forecaster(unit)
        outputs = [output[stream] for output in history.outputs[: len(decision.sources)]]
        base = now if unit.residual else None
        lane = unit.lane + stream
        if isinstance(forecaster.rows, Fitted):
            base = self._input_part(forecaster.rows, lane, decision.step, history, stream, now, base)
        if forecaster.subspace is None and forecaster.band is None and forecaster.magnitude is None:
            return self._corrected(
                self._sum(forecaster, lane, decision, outputs, base), forecaster, lane, decision.step
            )
        increment = self._sum(forecaster, lane, decision, outputs, None).sub_(outputs[0])
        if forecaster.subspace is not None:
            increment = project(increment, self._constant(forecaster.subspace.basis, lane, now.device))
        if forecaster.band is not None:
            increment = _passed(increment, forecaster.band)
        if forecaster.magnitude is not None:
            increment = self._rescaled(increment, forecaster, lane, stream, decision.step, history, now)
        result = self._corrected(increment.add_(outputs[0]), forecaster, lane, decision.step)
        return result if base is None else result.add_(base)

    def _corrected(self, result: Tensor, forecaster: Forecaster, lane: int, step: int) -> Tensor:
        if forecaster.correction is None:
            return result
        return result.add_(self._constant(forecaster.correction.offsets, lane, result.device)[step])

    def _sum(
        self,
        forecaster: Forecaster,
        lane: int,
        decision: Forecast,
        outputs: list[Tensor],
        base: Tensor | None,
    ) -> Tensor:
        match forecaster.rows:
            case Fitted(weights=name, ids=None):
                return weighted_sum(self._fitted_row(name, lane, decision.step), outputs, base)
            case Fitted(weights=name, ids=str(ids)):
                table = self._grouped(name, ids, lane, decision.step, outputs[0].device)
                return clustered_sum(table[: len(outputs)], outputs, base)
            case Clusters(ids=name):
                chosen = self._constant(name, lane, outputs[0].device).long()
                table = torch.tensor(decision.clusters, device=outputs[0].device)
                return clustered_sum(table[chosen].T, outputs, base)
            case _:
                return weighted_sum(decision.weights, outputs, base)

    def _input_part(
        self,
        row: Fitted,
        lane: int,
        step: int,
        history: History,
        stream: int,
        now: Tensor,
        base: Tensor | None,
    ) -> Tensor | None:
        """Add the fitted weights of past inputs (and, last, of the input now)."""
        if row.input_weights is None:
            return base
        if row.ids is not None:
            table = self._grouped(row.input_weights, row.ids, lane, step, now.device)
            known = [feature[stream] for feature in history.inputs[: len(table) - 1]]
            return clustered_sum(torch.cat((table[-1:], table[: len(known)])), (now, *known), base)
        *past, present = self._fitted_row(row.input_weights, lane, step)
        inputs = [feature[stream] for feature in history.inputs[: len(past)]]
        return weighted_sum((present, *past[: len(inputs)]), (now, *inputs), base)

    def _rescaled(
        self,
        increment: Tensor,
        forecaster: Forecaster,
        lane: int,
        stream: int,
        step: int,
        history: History,
        now: Tensor,
    ) -> Tensor:
        """RFE: the length s |I - I0|, once s is known. An input at rest, as a text stream's, tells no length."""
        scale = self._scale(forecaster.magnitude, lane, stream, step, history)
        if scale is None:
            return increment
        moved = sample_norm(now - history.inputs[0][stream])
        return rescale(increment, torch.where(moved > 0, moved * scale, sample_norm(increment)))

    def _scale(
        self, magnitude: Magnitude | None, lane: int, stream: int, step: int, history: History
    ) -> Tensor | float | None:
        observed = None if history.scales is None else history.scales[stream]
        match magnitude:
            case Calibrated(scales=name):
                return self._calibrated(name, lane, step)
            case Mixed(scales=name) if observed is not None:
                return observed * self._calibrated(name, lane, step)
            case Observed():
                return observed
            case _:
                return None

    def _calibrated(self, name: str, lane: int, step: int) -> float:
        table = self.plan.policy.arrays[name]
        return float(table[lane, self.plan.bin(step, table.shape[1])])

    def _fitted_row(self, name: str, lane: int, step: int) -> tuple[float, ...]:
        return tuple(self.plan.policy.arrays[name][lane, step].tolist())

    def _grouped(self, name: str, ids: str, lane: int, step: int, device: torch.device) -> Tensor:
        """One weight per tap and channel: [taps, channels]."""
        groups = self._constant(ids, lane, device).long()
        return self._constant(name, lane, device)[step][:, groups]

    def _constant(self, name: str, lane: int, device: torch.device) -> Tensor:
        key = name, lane, device
        if key not in self._constants:
            self._constants[key] = torch.from_numpy(self.plan.policy.arrays[name][lane].copy()).to(device)
        return self._constants[key]


def _passed(increment: Tensor, band: Band) -> Tensor:
    """FreqCa: on the grid where the stream has its number of tokens, else over all tokens in a row."""
    if band.grid is not None and band.grid[0] * band.grid[1] == increment.shape[-2]:
        return high_pass_grid(increment, band.cutoff, band.grid)
    return high_pass(increment, band.cutoff)
