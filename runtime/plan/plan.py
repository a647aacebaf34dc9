"""One profile on one sampler, and what it decides for a unit and a step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from cachesmith.policies import (
    ClosedRow,
    Clustered,
    Clusters,
    Distance,
    Fitted,
    Forecaster,
    Policy,
    Probe,
    Profile,
    Refresh,
    Relational,
    Scored,
)
from cachesmith.policies.weights import Weights, forecast_weights, taps
from cachesmith.runtime.models.units import Unit


@dataclass(frozen=True)
class Compute:
    """Run the unit; `why` it must be run although a forecast was planned, if so."""

    why: str | None = None


@dataclass(frozen=True)
class Forecast:
    """Estimate the unit from the outputs of the steps in `sources` (newest first).

    `weights[j]` belongs to `sources[j]`. For clusters, `weights` is empty and `clusters[c][j]` holds one row per
    cluster; for fitted rows both are empty and the row is read from the policy's array.
    """

    step: int
    sources: tuple[int, ...]
    weights: Weights = ()
    clusters: tuple[Weights, ...] = ()


Decision = Compute | Forecast
COMPUTE = Compute()
UNPLANNED = Compute("fitted weights do not cover the steps that were computed")


@dataclass(frozen=True, eq=False)
class Plan:
    """One profile on one sampler.

    `times` has one entry per step on the profile's axis. `masks` maps every unit group to its schedule where the gate
    is static and is empty where the gate decides while sampling.
    """

    policy: Policy
    profile: Profile
    times: tuple[float, ...]
    units: tuple[Unit, ...]
    masks: Mapping[str, str]

    @property
    def steps(self) -> int:
        """Number of sampler steps."""
        return len(self.times)

    @property
    def gauge(self) -> Unit:
        """The unit that a gate that decides while sampling looks at."""
        gate = self.profile.gate
        return self.units[-1 if isinstance(gate, Probe) and gate.place == "last" else 0]

    def always(self, unit: Unit) -> bool:
        """Whether the unit is a probe: computed at every step, and remembered only where all others are computed."""
        return isinstance(self.profile.gate, Probe) and unit is self.gauge

    def compared(self, unit: Unit) -> bool:
        """Whether the unit is a probe that is only held against its last output, and never forecast."""
        gate = self.profile.gate
        return isinstance(gate, Probe) and gate.against == "last" and unit is self.gauge

    def forecaster(self, unit: Unit) -> Forecaster:
        """The forecaster of a unit: its group's override, else the profile's."""
        return self.profile.overrides.get(unit.group, self.profile.forecaster)

    def taps(self, unit: Unit) -> int:
        """How many past outputs of `unit` are kept."""
        if self.compared(unit):
            return 1
        match self.forecaster(unit).rows:
            case Fitted(weights=name):
                return int(self.policy.arrays[name].shape[2])
            case Clusters(rows=pool):
                return max(taps(row) for row in pool)
            case row:
                return taps(row)

    def input_taps(self, unit: Unit) -> int:
        """How many past inputs of `unit` are kept."""
        if self.compared(unit):
            return 0
        forecaster = self.forecaster(unit)
        if isinstance(forecaster.rows, Fitted) and forecaster.rows.input_weights is not None:
            return self.taps(unit)
        moved = isinstance(forecaster.refresh, Scored) and forecaster.refresh.importance == "moved"
        return int(forecaster.magnitude is not None or (unit.tokenwise and moved))

    def refresh(self, unit: Unit) -> Refresh | None:
        """How single tokens of `unit` are computed on forecast steps, if they are."""
        return self.forecaster(unit).refresh if unit.tokenwise else None

    def refreshed(self, unit: Unit, tokens: int) -> int:
        """How many of the `tokens` of `unit` are computed on a step that refreshes it."""
        match self.refresh(unit):
            case Scored(ratio=ratio, slope=slope):
                return min(tokens, round(ratio * (1 + slope * (1 - 2 * self._depths[unit.name])) * tokens))
            case Clustered(clusters=clusters):
                return min(tokens, clusters)
            case _:
                return 0

    @cached_property
    def _depths(self) -> dict[str, float]:
        """Where each unit stands among those of its group: 0 for the first, 1 for the last."""
        groups: dict[str, list[str]] = {}
        for unit in self.units:
            groups.setdefault(unit.group, []).append(unit.name)
        return {
            name: index / (len(names) - 1) if len(names) > 1 else 0.5
            for names in groups.values()
            for index, name in enumerate(names)
        }

    def decide(self, unit: Unit, step: int, computed: Sequence[int]) -> Decision:
        """Forecast `unit` at `step` from the steps already `computed` (newest first), or compute it."""
        if self.masks and self.masks[unit.group][step] == "C":
            return COMPUTE
        sources = tuple(computed[: self.taps(unit)])
        forecaster = self.forecaster(unit)
        if by_step(forecaster) and sources != self._planned(unit, step):
            return UNPLANNED
        if isinstance(forecaster.rows, Fitted):
            return Forecast(step, sources)
        return self._forecast(forecaster.rows, step, sources) if sources else COMPUTE

    def keeps(self, unit: Unit, step: int) -> bool:
        """Whether a computed `step` is remembered. What was fitted by step holds for the planned ones only."""
        return not by_step(self.forecaster(unit)) or self.masks[unit.group][step] == "C"

    def _planned(self, unit: Unit, step: int) -> tuple[int, ...]:
        letters = self.masks[unit.group]
        return tuple(s for s in reversed(range(step)) if letters[s] == "C")[: self.taps(unit)]

    def _forecast(self, row: ClosedRow | Clusters, step: int, sources: tuple[int, ...]) -> Forecast:
        past, now = [self.times[s] for s in sources], self.times[step]
        if not isinstance(row, Clusters):
            weights = forecast_weights(row, past, now)
            return Forecast(step, sources[: len(weights)], weights)
        table = (forecast_weights(solver, past, now) for solver in row.rows)
        return Forecast(step, sources, clusters=tuple((*w, *(0.0,) * (len(sources) - len(w))) for w in table))

    def bin(self, step: int, bins: int) -> int:
        """The time bin of `step` when the trajectory is cut into `bins` equal parts."""
        return min(step * bins // self.steps, bins - 1)

    def bytes(self, shapes: Mapping[str, tuple[int, ...]], itemsize: int, branches: int = 1) -> int:
        """Exact size of the cache in bytes, for streams of the given shapes (batch included) and element size.

        A module's stream that the blocks do not name (`input` of FLUX's single blocks) is all streams joined. Inputs
        that both the gate and the first unit's forecast read are held once. Reached once a step was forecast.
        """
        sizes = {name: prod(shape) for name, shape in shapes.items()}
        joined = sum(sizes.values())
        elements = sum(
            sizes.get(stream, joined) * (self.taps(unit) + self.input_taps(unit))
            for unit in self.units
            for stream in unit.streams
        )
        main = sizes.get(self.gauge.streams[self.gauge.main], joined)
        streams = sum(sizes.get(stream, joined) for stream in self.gauge.streams)
        match self.profile.gate:
            case Relational(order=order):
                elements += streams * max(0, order + 1 - self.input_taps(self.gauge))
            case Distance(per="signal"):
                elements += main
            case Distance(per="output", signal=signal):
                entered = not (signal == "input" and self.input_taps(self.gauge) > 0)
                elements += main * (1 + entered + self.gauge.residual)
        tokens = sum(self._token_bytes(unit, shapes, itemsize) for unit in self.units)
        return (elements * itemsize + tokens) * branches

    def _token_bytes(self, unit: Unit, shapes: Mapping[str, tuple[int, ...]], itemsize: int) -> int:
        """Size of `TokenState`: a mark of two bytes a token, and one or two tensors of the unit's shape."""
        rule = self.refresh(unit)
        if rule is None:
            return 0
        own = [shapes[s] for s in unit.streams if s in shapes] or list(shapes.values())
        samples, length, channels = own[0][0], sum(shape[1] for shape in own), own[0][2]
        if not self.refreshed(unit, length):
            return 0
        kept = 2 if isinstance(rule, Scored) and rule.importance == "moved" else 1
        return samples * length * (2 + kept * channels * itemsize)


def by_step(forecaster: Forecaster) -> bool:
    """Whether weights or a correction were fitted for each step of one schedule."""
    return isinstance(forecaster.rows, Fitted) or forecaster.correction is not None


def has_fitted(profile: Profile) -> bool:
    """Whether any forecaster of `profile` has weights or a correction fitted per step."""
    return any(by_step(f) for f in (profile.forecaster, *profile.overrides.values()))
