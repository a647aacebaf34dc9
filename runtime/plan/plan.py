"""One profile on one sampler: a table of what is done for every unit at every step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from cachesmith.policies import (
    Clustered,
    Clusters,
    Fitted,
    Forecaster,
    Mixed,
    Observed,
    Policy,
    Profile,
    Refresh,
    Scored,
)
from cachesmith.policies.forecaster import by_step
from cachesmith.policies.rows import forecast_weights
from cachesmith.policies.schedule import computed_steps
from cachesmith.policies.weights import Weights
from cachesmith.runtime.gates.base import GateRules, time_bin
from cachesmith.runtime.models.units import Unit, is_tokenwise


@dataclass(frozen=True)
class Compute:
    """Run the unit. `keep`: a later forecast reads it; `why` it is run although the schedule has a forecast, if so."""

    keep: bool = True
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
UNPLANNED = Compute(keep=False, why="fitted weights do not cover the steps that were computed")
NOT_ITS_STEP = Compute(
    keep=False, why="the policy was made for another denoiser at this step: the boundary between them moved"
)


@dataclass(frozen=True, eq=False)
class Plan:
    """One profile on one sampler.

    `times` has one entry per step on the profile's axis. `masks` maps every unit group to its schedule where the gate
    is static; where the gate decides while sampling, masks are empty and `gate` has its rules.
    """

    policy: Policy
    profile: Profile
    times: tuple[float, ...]
    units: tuple[Unit, ...]
    masks: Mapping[str, str]
    gate: GateRules | None = None
    _schedules: dict[tuple[str, int], tuple[Decision, ...]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Number of sampler steps."""
        return len(self.times)

    def probes(self, unit: Unit) -> bool:
        """Whether the unit is a probe: computed at every step, and remembered only where all others are computed."""
        return self.gate is not None and self.gate.probes and unit is self.gate.unit

    def compares(self, unit: Unit) -> bool:
        """Whether the unit is a probe that is only held against its last output, and never forecast."""
        return self.gate is not None and self.gate.compares and unit is self.gate.unit

    def forecaster(self, unit: Unit) -> Forecaster:
        """The forecaster of a unit: its group's override, else the profile's."""
        return self.profile.overrides.get(unit.group, self.profile.forecaster)

    def taps(self, unit: Unit) -> int:
        """How many past outputs of `unit` are kept."""
        if self.compares(unit):
            return 1
        match self.forecaster(unit).rows:
            case Fitted(weights=name):
                return int(self.policy.arrays[name].shape[2])
            case Clusters(rows=pool):
                return max(row.taps for row in pool)
            case row:
                return row.taps

    def input_taps(self, unit: Unit) -> int:
        """How many past inputs of `unit` are kept."""
        if self.compares(unit):
            return 0
        forecaster = self.forecaster(unit)
        if isinstance(forecaster.rows, Fitted) and forecaster.rows.input_weights is not None:
            return self.taps(unit)
        moved = isinstance(forecaster.refresh, Scored) and forecaster.refresh.importance == "moved"
        return int(forecaster.magnitude is not None or (is_tokenwise(unit) and moved))

    def observes_scale(self, unit: Unit) -> bool:
        """Whether RFE's scale is measured between computed steps of `unit`."""
        return not self.compares(unit) and isinstance(self.forecaster(unit).magnitude, Observed | Mixed)

    def refresh(self, unit: Unit) -> Refresh | None:
        """How single tokens of `unit` are computed on forecast steps, if they are."""
        return self.forecaster(unit).refresh if is_tokenwise(unit) else None

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

    def bin(self, step: int, bins: int) -> int:
        """The time bin of `step` when the trajectory is cut into `bins` equal parts."""
        return time_bin(step, self.steps, bins)

    def schedule(self, unit: Unit, start: int = 0) -> tuple[Decision, ...]:
        """One row of the table: what is done with `unit` at every step, where nothing is known before step `start`.

        For static gates only. Raises nothing: what cannot be forecast from `start` on is computed.
        """
        key = unit.name, start
        if key not in self._schedules:
            decisions = self._decisions(unit, start)
            self._schedules[key] = _with_liveness(decisions, self.observes_scale(unit))
        return self._schedules[key]

    @property
    def table(self) -> dict[str, tuple[Decision, ...]]:
        """The whole table of a run from the first step: unit -> step -> decision. Empty for dynamic gates."""
        return {unit.name: self.schedule(unit) for unit in self.units} if self.masks else {}

    def _decisions(self, unit: Unit, start: int) -> list[Decision]:
        letters, fixed = self.masks[unit.group], by_step(self.forecaster(unit))
        computed: list[int] = []
        decisions: list[Decision] = [Compute(keep=False)] * start
        for step in range(start, self.steps):
            decision: Decision = Compute()
            if letters[step] == "-":
                decision = NOT_ITS_STEP
            elif letters[step] != "C" and fixed and not self._as_fitted(unit, step, computed):
                decision = UNPLANNED
            elif letters[step] != "C" and computed:
                decision = self.forecast(unit, step, computed)
            if decision == Compute():
                computed.insert(0, step)
            decisions.append(decision)
        return decisions

    def _as_fitted(self, unit: Unit, step: int, computed: Sequence[int]) -> bool:
        """Whether the newest computed steps are those of a whole run, for which weights were fitted, as far as these
        read them: after a step at which guidance came on, they do not read what was before."""
        letters, taps = self.masks[unit.group], self._read(unit, step)
        whole = computed_steps(letters[:step])[::-1]
        return list(computed[:taps]) == whole[:taps]

    def _read(self, unit: Unit, step: int) -> int:
        """How many of the newest computed steps have a weight at `step`."""
        rows, taps = self.forecaster(unit).rows, self.taps(unit)
        if not isinstance(rows, Fitted):
            return taps
        lanes, arrays = slice(unit.lane, unit.lane + len(unit.streams)), self.policy.arrays
        names = [rows.weights, *([] if rows.input_weights is None else [rows.input_weights])]
        read = [tap for tap in range(taps) if any(arrays[name][lanes, step, tap].any() for name in names)]
        return max(read, default=-1) + 1

    def forecast(self, unit: Unit, step: int, computed: Sequence[int]) -> Forecast:
        """How `unit` is forecast at `step` from the steps already `computed` (newest first)."""
        sources = tuple(computed[: self.taps(unit)])
        past, now = [self.times[s] for s in sources], self.times[step]
        match self.forecaster(unit).rows:
            case Fitted():
                return Forecast(step, sources)
            case Clusters(rows=pool):
                table = (forecast_weights(solver, past, now) for solver in pool)
                padded = tuple((*w, *(0.0,) * (len(sources) - len(w))) for w in table)
                return Forecast(step, sources, clusters=padded)
            case row:
                weights = forecast_weights(row, past, now)
                return Forecast(step, sources[: len(weights)], weights)


def _with_liveness(decisions: list[Decision], observes_scale: bool) -> tuple[Decision, ...]:
    """Keep only the computed steps that a later forecast reads, be it by the scale measured between two of them."""
    computed = [step for step, decision in enumerate(decisions) if decision == Compute()]
    live: set[int] = set()
    for decision in decisions:
        if isinstance(decision, Forecast):
            live.update(decision.sources)
            if observes_scale:
                older = [step for step in computed if step < decision.sources[0]]
                live.update(older[-1:])
    return tuple(
        Compute(keep=step in live) if decision == Compute() else decision
        for step, decision in enumerate(decisions)
    )
