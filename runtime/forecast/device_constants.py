"""The policy's arrays on the devices that the units compute on: copied once, before the first forecast."""

import torch
from torch import Tensor

from cachesmith.policies import Clusters, PolicyError, lane_ids
from cachesmith.runtime.features import Feature
from cachesmith.runtime.models.units import Unit
from cachesmith.runtime.plan.constants import LaneConstants, cluster_rows, lane_constants
from cachesmith.runtime.plan.plan import Forecast, Plan
from cachesmith.runtime.tensors.kernels import Weight


class DeviceLane:
    """One lane's constants on one device, ready to be multiplied with."""

    def __init__(self, host: LaneConstants, device: torch.device):
        self.host = host
        # a blocking copy would wait for the stream
        self._tensors = [torch.from_numpy(a).to(device, non_blocking=True) for a in host.arrays()]
        left = iter(self._tensors)
        rows, inputs, self.basis, offsets = (
            None if array is None else next(left)
            for array in (host.rows, host.inputs, host.basis, host.offsets)
        )
        self._rows = [] if rows is None else [row.unbind() for row in rows]
        self._inputs = [] if inputs is None else [row.unbind() for row in inputs]
        self._offsets = () if offsets is None else offsets.unbind()

    def tensors(self) -> list[Tensor]:
        """Everything held."""
        return self._tensors

    def weights(self, decision: Forecast) -> tuple[Weight, ...]:
        """The weights of the past outputs of a forecast, newest first."""
        if self.host.numbers is not None:
            return tuple(self.host.numbers[decision.step].tolist())
        if self.host.place is None:
            return decision.weights
        rows: tuple[Weight, ...] = self._rows[self.host.place[decision.clusters or decision.step]]
        return rows

    def input_weights(self, step: int) -> tuple[Weight, ...] | None:
        """The weights of the input now and of past inputs, newest first; None where inputs weigh nothing."""
        if self.host.input_numbers is not None:
            *past, now = self.host.input_numbers[step].tolist()
        elif self._inputs and self.host.place is not None:
            *past, now = self._inputs[self.host.place[step]]
        else:
            return None
        return (now, *past)

    def offset(self, step: int) -> Tensor | None:
        """What is added at `step`, [C]."""
        return self._offsets[step] if self._offsets else None


class DeviceConstants:
    """The lanes of one plan. `for_unit` copies what is not there yet."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self._lanes: dict[tuple[int, torch.device], DeviceLane] = {}

    def prepare(self, unit: Unit, feature: Feature) -> None:
        """Have the constants of `unit` where `feature` is. Raises `PolicyError` for another number of channels."""
        for stream, tensor in enumerate(feature):
            self.lane(unit, stream, tensor)

    def lane(self, unit: Unit, stream: int, like: Tensor) -> DeviceLane:
        """One stream's constants."""
        key = unit.lane + stream, like.device
        if key not in self._lanes:
            host = lane_constants(self.plan, unit, stream)
            _check_channels(unit, host, like.shape[-1])
            self._lanes[key] = DeviceLane(host, like.device)
        return self._lanes[key]

    def weights(self, unit: Unit, stream: int, decision: Forecast, like: Tensor) -> tuple[Weight, ...]:
        """The weights of a forecast; those of clusters that were not planned are made now.

        They are not kept: a gate that decides while sampling makes others in every request of a server.
        """
        lane = self.lane(unit, stream, like)
        rows = self.plan.forecaster(unit).rows
        known = lane.host.place is not None and decision.clusters in lane.host.place
        if not isinstance(rows, Clusters) or known:
            return lane.weights(decision)
        ids = lane_ids(self.plan.policy.arrays[rows.ids][unit.lane + stream])
        table = torch.from_numpy(cluster_rows([decision.clusters], len(decision.sources), ids)[0])
        return table.to(like.device, non_blocking=True).unbind()

    def tensors(self) -> list[Tensor]:
        """Everything held."""
        return [tensor for lane in self._lanes.values() for tensor in lane.tensors()]


def _check_channels(unit: Unit, host: LaneConstants, channels: int) -> None:
    for array, axis in ((host.rows, -1), (host.inputs, -1), (host.offsets, -1), (host.basis, 0)):
        if array is not None and array.shape[axis] != channels:
            raise PolicyError(
                f"the policy's arrays for {unit.name} are for {array.shape[axis]} channels and this model has "
                f"{channels}; calibrate for this model"
            )
