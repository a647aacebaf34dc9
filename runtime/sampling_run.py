"""The one place where it is decided and done: compute a unit, or forecast it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from cachesmith.runtime.forecast.estimator import Constants, Estimator
from cachesmith.runtime.forecast.history import Feature, History, finite
from cachesmith.runtime.forecast.token_refresh import Partial, refresh
from cachesmith.runtime.gates.base import Computed, Entered, Verdict
from cachesmith.runtime.memory import Branch, Memory
from cachesmith.runtime.models.units import Unit
from cachesmith.runtime.plan.plan import Compute, Forecast, Plan
from cachesmith.runtime.stats import (
    CHANGED_SHAPE,
    NON_FINITE,
    NON_FINITE_OUTPUT,
    REPEATED,
    UNEXPECTED,
    Stats,
    Trace,
)


class Run:
    """One sampling run that follows `plan` from step `start`, on all its guidance branches."""

    def __init__(
        self, plan: Plan, start: int, stats: Stats, constants: Constants, memory_budget: int | None = None
    ):
        self.plan, self.stats = plan, stats
        self.memory = Memory(plan, start, stats, memory_budget)
        self._estimator = Estimator(plan, constants)
        self._number, self._step, self._name = 0, start, ""
        self._compute_all = False
        self._undecided = False
        self._modulated: Callable[[], Tensor] | None = None
        self._sums: dict[torch.device, Tensor] = {}
        self._seen: set[str] = set()
        self._repeated: set[str] = set()

    @property
    def _branch(self) -> Branch:
        return self.memory.branch(self._name)

    def call(self, number: int, step: int, branch: str) -> None:
        """The transformer is called: for which run, sampler step and guidance branch."""
        self._number, self._step, self._name = number, step, branch
        self._compute_all = self._undecided = False
        self._seen.clear()
        if self.plan.masks:
            self._record("".join(sorted({m[step] for m in self.plan.masks.values()})), None)

    def offer(self, unit: Unit, modulated: Callable[[], Tensor]) -> None:
        """The unit is about to be called, and this makes its modulated input."""
        if unit is self.plan.units[0]:
            self._modulated = modulated

    def forecast(self, unit: Unit, inputs: Feature) -> Feature | Partial | None:
        """Return the unit's forecast, perhaps with tokens to compute, or None to have all of it computed."""
        if unit is self.plan.units[0]:
            self._enter(unit, inputs)
        if self._compute_all or self.plan.always(unit):
            return None
        history = self._branch.history(unit)
        match self.plan.decide(unit, self._step, history.steps):
            case Compute(why=why):
                if why is not None:
                    self.stats.fall_back(why)
                return None
            case Forecast() as decision:
                return self._estimate(unit, decision, history, inputs)

    def computes(self, unit: Unit, inputs: Feature) -> bool:
        """Whether `unit` cannot be forecast now; a reason that was not planned is counted."""
        self.memory.check_budget(self._branch, unit, inputs)
        history = self._branch.history(unit)
        decision = self.plan.decide(unit, self._step, history.steps)
        if isinstance(decision, Forecast) and history.fits(inputs):
            return False
        why = decision.why if isinstance(decision, Compute) else CHANGED_SHAPE
        if why is not None:
            self.stats.fall_back(why)
        return True

    def observe(self, unit: Unit, inputs: Feature, outputs: Feature) -> None:
        """Show a computed unit to the gate, and remember it."""
        if len(outputs) != len(unit.streams):
            self._reject(unit, UNEXPECTED)
            return
        if self._again(unit):
            self._reject(unit, REPEATED)
            return
        if unit.residual:
            outputs = tuple(new - old for new, old in zip(outputs, inputs, strict=True))
        if not self._finite(outputs):
            self._reject(unit, NON_FINITE_OUTPUT)
            return
        branch = self._branch
        with self.memory.changing(branch, unit):
            if unit is self.plan.gauge:
                self._leave(unit, inputs, outputs)
            if self._compute_all or not self.plan.always(unit):
                self.memory.remember(branch, unit, self._step, inputs, outputs)

    def _again(self, unit: Unit) -> bool:
        """Whether calls of the unit cannot be told apart, in this call of the transformer or an earlier one."""
        if unit.name in self._seen:
            self._repeated.add(unit.name)
        self._seen.add(unit.name)
        return unit.name in self._repeated

    def _enter(self, unit: Unit, inputs: Feature) -> None:
        """At the first unit of a call: check memory once, and let a dynamic gate decide for the whole call."""
        branch = self._branch
        self.memory.check_budget(branch, unit, inputs)
        if branch.gate is None:
            return
        offered, self._modulated = self._modulated, None
        with self.memory.changing(branch, unit):
            verdict = branch.gate.enter(Entered(self._step, inputs, offered or (lambda: inputs[unit.main])))
        self._undecided = verdict is None
        self._follow(verdict)

    def _leave(self, unit: Unit, inputs: Feature, outputs: Feature) -> None:
        """After the unit that a dynamic gate looks at was computed."""
        gate, history = self._branch.gate, self._branch.history(unit)
        if gate is not None:
            forecast = partial(self._own_forecast, unit, history, inputs)
            self._follow(gate.leave(Computed(self._step, inputs, outputs, history, forecast)))

    def _own_forecast(self, unit: Unit, history: History, inputs: Feature) -> Feature | None:
        """What would have been forecast of a unit that was computed: for runs of blocks, the residual."""
        decision = self.plan.decide(unit, self._step, history.steps)
        if not isinstance(decision, Forecast):
            return None
        return self._estimator(replace(unit, residual=False), decision, history, inputs)

    def _follow(self, verdict: Verdict | None) -> None:
        if verdict is None:
            return
        self._compute_all, self._undecided = verdict.compute, False
        if verdict.why is not None:
            self.stats.fall_back(verdict.why)
        self._record("C" if verdict.compute else "F", verdict.demand)

    def _reject(self, unit: Unit, why: str) -> None:
        """Nothing can be forecast from what was computed."""
        self.memory.forget(self._branch, unit)
        self.stats.fall_back(why)
        if self._undecided:
            self._follow(Verdict(True))

    def _estimate(
        self, unit: Unit, decision: Forecast, history: History, inputs: Feature
    ) -> Feature | Partial | None:
        if not history.fits(inputs):
            self.memory.forget(self._branch, unit)
            self.stats.fall_back(CHANGED_SHAPE)
            return None
        result = self._estimator(unit, decision, history, inputs)
        if not self._finite(result):
            self.stats.fall_back(NON_FINITE)
            return None
        self.stats.forecast[unit.name] += 1
        if self.plan.refresh(unit) is None:
            return result
        with self.memory.changing(self._branch, unit):
            refreshed = refresh(self.plan, unit, decision, history, inputs, result)
        return self._watched(unit, history, refreshed) if isinstance(refreshed, Partial) else refreshed

    def _watched(self, unit: Unit, history: History, some: Partial) -> Partial:
        """Count and check the tokens that are computed."""

        def complete(computed: Feature) -> Feature:
            self.stats.count_refreshed(unit.name, some.fraction, unit.share, self._number, self._name)
            with self.memory.changing(self._branch, unit):
                result = some.complete(computed)
                if not self._finite(computed):
                    history.clear()
                    self.stats.fall_back(NON_FINITE_OUTPUT)
            return result

        return replace(some, complete=complete)

    def _record(self, decision: str, demand: float | None) -> None:
        self.stats.trace.append(Trace(self._number, self._step, self._name, decision, demand))

    def _finite(self, feature: Feature) -> bool:
        """Whether every value is finite. To look on an accelerator would stall it: sums are kept there for `close`."""
        if _on_host(feature):
            return finite(feature)
        for tensor in feature:
            total = tensor.sum(dtype=torch.float32)
            self._sums[tensor.device] = self._sums.get(tensor.device, 0) + total
        return True

    def close(self) -> None:
        """After the run: look at what was not looked at."""
        sums, self._sums = self._sums, {}
        if not all(bool(torch.isfinite(total)) for total in sums.values()):
            self.stats.distrust()


def _on_host(feature: Feature) -> bool:
    return feature[0].device.type == "cpu"
