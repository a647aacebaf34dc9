"""One unit's forecast from its history: the formulas of `policies/forecaster.py` on tensors."""

from torch import Tensor

from cachesmith.policies import Band, Calibrated, Forecaster, Mixed
from cachesmith.runtime.features import Feature
from cachesmith.runtime.forecast.device_constants import DeviceConstants, DeviceLane
from cachesmith.runtime.forecast.history import History
from cachesmith.runtime.models.units import Unit
from cachesmith.runtime.plan.plan import Forecast, Plan
from cachesmith.runtime.tensors.increments import high_pass, high_pass_grid, project
from cachesmith.runtime.tensors.kernels import (
    Terms,
    Weight,
    relational_step,
    rescale,
    step_away,
    weighted_sum,
)
from cachesmith.runtime.tensors.norms import accumulate, observed_scale


def observe_scale(history: History, outputs: Feature, inputs: Feature) -> None:
    """Before the history moves on: RFE's s of the newest two computed steps, per stream and sample."""
    if history.inputs and history.fits(inputs):
        history.scales = tuple(
            observed_scale(new, old, moved, before)
            for new, old, moved, before in zip(
                outputs, history.outputs[0], inputs, history.inputs[0], strict=True
            )
        )


class Estimator:
    """Forecasts units under one plan. Holds no state of the sampling run."""

    def __init__(self, plan: Plan, constants: DeviceConstants | None = None):
        self.plan = plan
        self.constants = constants or DeviceConstants(plan)

    def output(self, unit: Unit, decision: Forecast, history: History, inputs: Feature) -> Feature:
        """The unit's output at `decision.step`."""
        return self._feature(unit, decision, history, inputs, unit.base(inputs))

    def feature(self, unit: Unit, decision: Forecast, history: History, inputs: Feature) -> Feature:
        """What would be cached of the unit at `decision.step`."""
        return self._feature(unit, decision, history, inputs, None)

    def _feature(
        self, unit: Unit, decision: Forecast, history: History, inputs: Feature, base: Feature | None
    ) -> Feature:
        return tuple(
            self._stream(unit, stream, decision, history, now, None if base is None else base[stream])
            for stream, now in enumerate(inputs)
        )

    def _stream(
        self, unit: Unit, stream: int, decision: Forecast, history: History, now: Tensor, base: Tensor | None
    ) -> Tensor:
        forecaster = self.plan.forecaster(unit)
        lane = self.constants.lane(unit, stream, now)
        weights = self.constants.weights(unit, stream, decision, now)
        outputs = [feature[stream] for feature in history.outputs[: len(decision.sources)]]
        inputs = _input_terms(lane.input_weights(decision.step), history, stream, now)
        terms = list(zip(weights, outputs, strict=False))
        offset = lane.offset(decision.step)
        if forecaster.subspace is None and forecaster.band is None and forecaster.magnitude is None:
            return weighted_sum([*inputs, *terms], base, offset, now.dtype)
        if inputs:
            base = weighted_sum(inputs, base, dtype=accumulate(now.dtype))
        scale = _scale(forecaster, lane, stream, decision.step, history)
        if forecaster.subspace is None and forecaster.band is None and scale is not None:
            return relational_step(terms, outputs[0], (now, history.inputs[0][stream]), scale, base, offset)
        step = _filtered(step_away(terms, outputs[0]), forecaster, lane)
        if scale is not None:
            step = rescale(step, (now, history.inputs[0][stream]), scale)
        parts: list[tuple[Weight, Tensor]] = [(1.0, step), (1.0, outputs[0])]
        return weighted_sum(parts, base, offset, now.dtype)


def _input_terms(weights: tuple[Weight, ...] | None, history: History, stream: int, now: Tensor) -> Terms:
    """Fitted weights of the input now and of past inputs."""
    if weights is None:
        return []
    return list(zip(weights, (now, *(feature[stream] for feature in history.inputs)), strict=False))


def _scale(
    forecaster: Forecaster, lane: DeviceLane, stream: int, step: int, history: History
) -> Tensor | float | None:
    """RFE's s; None where there is none, or it is not known yet."""
    if forecaster.magnitude is None:
        return None
    if isinstance(forecaster.magnitude, Calibrated):
        return lane.host.scales[step]
    if history.scales is None:
        return None
    observed = history.scales[stream]
    return observed * lane.host.scales[step] if isinstance(forecaster.magnitude, Mixed) else observed


def _filtered(step: Tensor, forecaster: Forecaster, lane: DeviceLane) -> Tensor:
    """SVD-Cache's projection and FreqCa's filter, where the forecaster has them."""
    if forecaster.subspace is not None and lane.basis is not None:
        step = project(step, lane.basis)
    return step if forecaster.band is None else _passed(step, forecaster.band)


def _passed(step: Tensor, band: Band) -> Tensor:
    """FreqCa: on the grid where the stream has its number of tokens, else over all tokens in a row."""
    if band.grid is not None and band.grid[0] * band.grid[1] == step.shape[-2]:
        return high_pass_grid(step, band.cutoff, band.grid)
    return high_pass(step, band.cutoff)
