"""The policy's arrays as the loop reads them: rows per channel, bases and offsets of one lane, on the host.

They are laid out once per plan and lane, copied to the device before the first forecast, and counted.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachesmith.policies import Calibrated, Clusters, Fitted, Mixed, lane_ids
from cachesmith.policies.weights import Weights
from cachesmith.runtime.models.units import Unit
from cachesmith.runtime.plan.plan import Forecast, Plan

Float32Array = NDArray[np.float32]
Clustering = tuple[Weights, ...]


@dataclass(frozen=True)
class LaneConstants:
    """Arrays of one lane. C: channels, R: distinct rows, K: taps.

    rows: [R, K, C] weights of past outputs, and in `place` where each forecast step or clustering finds its own;
    inputs: the same of past inputs and, last, of the input now; basis: [C, k]; offsets: [steps, C]. Weights without
    channels are numbers: `numbers` and `input_numbers` [steps, K].
    """

    rows: Float32Array | None = None
    inputs: Float32Array | None = None
    basis: Float32Array | None = None
    offsets: Float32Array | None = None
    place: dict[int | Clustering, int] | None = None
    numbers: Float32Array | None = None
    input_numbers: Float32Array | None = None
    scales: tuple[float, ...] = ()

    def arrays(self) -> list[Float32Array]:
        """What goes to the device."""
        return [a for a in (self.rows, self.inputs, self.basis, self.offsets) if a is not None]


def lane_constants(plan: Plan, unit: Unit, stream: int) -> LaneConstants:
    """Lay out the arrays of one stream of `unit`."""
    forecaster, arrays, lane = plan.forecaster(unit), plan.policy.arrays, unit.lane + stream
    parts: dict[str, Any] = {}
    match forecaster.rows:
        case Fitted(weights=name, input_weights=inputs, ids=None):
            parts["numbers"] = arrays[name][lane]
            parts["input_numbers"] = None if inputs is None else arrays[inputs][lane]
        case Fitted(weights=name, input_weights=inputs, ids=str(ids)):
            steps = [step for step, letter in enumerate(plan.masks[unit.group]) if letter == "F"]
            own = lane_ids(arrays[ids][lane])
            parts["rows"] = _by_channel(arrays[name][lane][steps], own)
            parts["inputs"] = None if inputs is None else _by_channel(arrays[inputs][lane][steps], own)
            parts["place"] = {step: row for row, step in enumerate(steps)}
        case Clusters(ids=ids) if plan.masks:
            clusterings = _clusterings(plan, unit)
            parts["place"] = {clustering: row for row, clustering in enumerate(clusterings)}
            parts["rows"] = cluster_rows(clusterings, plan.taps(unit), lane_ids(arrays[ids][lane]))
    if forecaster.subspace is not None:
        parts["basis"] = arrays[forecaster.subspace.basis][lane]
    if forecaster.correction is not None:
        parts["offsets"] = arrays[forecaster.correction.offsets][lane]
    if isinstance(forecaster.magnitude, Calibrated | Mixed):
        table = arrays[forecaster.magnitude.scales][lane]
        parts["scales"] = tuple(float(table[plan.bin(step, len(table))]) for step in range(plan.steps))
    return LaneConstants(**parts)


def constant_bytes(plan: Plan) -> int:
    """Bytes on the device of all lanes' arrays."""
    return sum(
        array.nbytes
        for unit in plan.units
        for stream in range(len(unit.streams))
        for array in lane_constants(plan, unit, stream).arrays()
    )


def cluster_rows(clusterings: list[Clustering], taps: int, ids: NDArray[Any]) -> Float32Array:
    """Every channel's cluster's weights: [clusterings, taps, C]. Taps that a clustering lacks weigh nothing."""
    table = np.zeros(
        (len(clusterings), taps, len(clusterings[0])) if clusterings else (0, taps, 1), np.float32
    )
    for row, clustering in enumerate(clusterings):
        table[row, : len(clustering[0])] = np.asarray(clustering, np.float32).T
    return _by_channel(table, ids)


def _clusterings(plan: Plan, unit: Unit) -> list[Clustering]:
    forecasts = (d.clusters for d in plan.schedule(unit) if isinstance(d, Forecast))
    return list(dict.fromkeys(forecasts))


def _by_channel(table: NDArray[Any], ids: NDArray[Any]) -> Float32Array:
    """The last axis, of groups, as one of channels; rows lie dense, or every sum with them would be slower."""
    if table.shape[-1] == len(ids) and np.array_equal(ids, np.arange(len(ids))):
        return np.ascontiguousarray(table, np.float32)
    return np.ascontiguousarray(np.take(table, ids, axis=-1), np.float32)
