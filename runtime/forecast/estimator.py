"""One unit's forecast from its history: the formulas of `policies/forecaster.py` on tensors."""

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachesmith.policies import (
    Band,
    Calibrated,
    Clusters,
    Fitted,
    Forecaster,
    Magnitude,
    Mixed,
    Observed,
    PolicyError,
)
from cachesmith.runtime.forecast.history import Feature, History
from cachesmith.runtime.forecast.kernels import (
    clustered_sum,
    high_pass,
    high_pass_grid,
    observed_scale,
    project,
    rescale,
    sample_norm,
    weighted_sum,
)
from cachesmith.runtime.models.units import Unit
from cachesmith.runtime.plan.plan import Forecast, Plan


def observe_scale(forecaster: Forecaster, history: History, outputs: Feature, inputs: Feature) -> None:
    """Before the history moves on: RFE's s of the newest two computed steps, per stream and sample."""
    if isinstance(forecaster.magnitude, Observed | Mixed) and history.fits(inputs):
        history.scales = tuple(
            observed_scale(new, old, moved, before)
            for new, old, moved, before in zip(
                outputs, history.outputs[0], inputs, history.inputs[0], strict=True
            )
        )


Constants = dict[Hashable, Tensor]
"""What a policy's arrays are on the device, each copied there once."""


class Estimator:
    """Forecasts units under one plan. Holds no state of the sampling run.

    `constants` may be shared by all plans of one policy.
    """

    def __init__(self, plan: Plan, constants: Constants | None = None):
        self.plan = plan
        self._constants: Constants = {} if constants is None else constants

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
            increment = project(increment, self._channelwise(forecaster.subspace.basis, lane, now, axis=0))
        if forecaster.band is not None:
            increment = _passed(increment, forecaster.band)
        if forecaster.magnitude is not None:
            increment = self._rescaled(increment, forecaster, lane, stream, decision.step, history, now)
        result = self._corrected(increment.add_(outputs[0]), forecaster, lane, decision.step)
        return result if base is None else result.add_(base)

    def _corrected(self, result: Tensor, forecaster: Forecaster, lane: int, step: int) -> Tensor:
        if forecaster.correction is None:
            return result
        return result.add_(self._channelwise(forecaster.correction.offsets, lane, result)[step])

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
                row = self._grouped(name, ids, lane, decision.step, outputs[0])
                return clustered_sum(row[: len(outputs)], outputs, base)
            case Clusters(ids=name):
                return clustered_sum(
                    self._clustered(name, lane, decision.clusters, outputs[0]), outputs, base
                )
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
        known = [feature[stream] for feature in history.inputs]
        if row.ids is not None:
            *rows, present = self._grouped(row.input_weights, row.ids, lane, step, now)
            return clustered_sum((present, *rows[: len(known)]), (now, *known), base)
        *weights, last = self._fitted_row(row.input_weights, lane, step)
        return weighted_sum((last, *weights[: len(known)]), (now, *known), base)

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

    def _grouped(self, name: str, ids: str, lane: int, step: int, like: Tensor) -> tuple[Tensor, ...]:
        """A row of one fitted weight per channel for every tap."""
        return self._spread(name, lambda: self._array(name, lane), ids, lane, like)[step].unbind()

    def _clustered(
        self, ids: str, lane: int, rows: tuple[tuple[float, ...], ...], like: Tensor
    ) -> tuple[Tensor, ...]:
        """A row of every channel's cluster's weight for every tap."""
        return self._spread(rows, lambda: np.asarray(rows, np.float32).T, ids, lane, like).unbind()

    def _spread(
        self, key: Hashable, table: Callable[[], NDArray[Any]], ids: str, lane: int, like: Tensor
    ) -> Tensor:
        """A table's last axis, of groups, as one of channels."""

        def make() -> Tensor:
            # indexing would lay the channels of a row far apart
            return torch.from_numpy(np.take(table(), self._array(ids, lane), axis=-1))

        return _fitting(ids, self._kept((key, ids, lane, like.device), make, like.device), like)

    def _channelwise(self, name: str, lane: int, like: Tensor, axis: int = -1) -> Tensor:
        """An array with an axis of channels. Raises `PolicyError` where `like` has another number of them."""
        return _fitting(name, self._constant(name, lane, like.device), like, axis)

    def _constant(self, name: str, lane: int, device: torch.device) -> Tensor:
        return self._kept((name, lane, device), lambda: torch.from_numpy(self._array(name, lane)), device)

    def _array(self, name: str, lane: int) -> NDArray[Any]:
        array: NDArray[Any] = self.plan.policy.arrays[name][lane]
        return array.copy()

    def _kept(self, key: Hashable, make: Callable[[], Tensor], device: torch.device) -> Tensor:
        if key not in self._constants:
            # a blocking copy would wait for the stream
            self._constants[key] = make().to(device, non_blocking=True)
        return self._constants[key]


def _fitting(name: str, array: Tensor, like: Tensor, axis: int = -1) -> Tensor:
    if array.shape[axis] != like.shape[-1]:
        raise PolicyError(
            f"array {name!r} is for {array.shape[axis]} channels and this model has {like.shape[-1]}; "
            "calibrate for this model"
        )
    return array


def _passed(increment: Tensor, band: Band) -> Tensor:
    """FreqCa: on the grid where the stream has its number of tokens, else over all tokens in a row."""
    if band.grid is not None and band.grid[0] * band.grid[1] == increment.shape[-2]:
        return high_pass_grid(increment, band.cutoff, band.grid)
    return high_pass(increment, band.cutoff)
