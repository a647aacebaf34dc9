"""The one place where it is decided and done: compute a unit, or forecast it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from cachesmith.runtime.features import Feature, owned
from cachesmith.runtime.forecast.device_constants import DeviceConstants
from cachesmith.runtime.forecast.estimator import Estimator
from cachesmith.runtime.forecast.history import History
from cachesmith.runtime.forecast.token_refresh import refresh
from cachesmith.runtime.gates.base import COMPUTE_CALL, GateDecision, ProbeComputed, UnitEntered
from cachesmith.runtime.hooks.runner import (
    COMPUTE_ALL,
    Answer,
    ComputeTokens,
    UnitCall,
    UnitResult,
    UseOutput,
)
from cachesmith.runtime.models.units import GuidanceDifference, Unit, image_stream, network_units
from cachesmith.runtime.plan.plan import Compute, Decision, Forecast, Plan
from cachesmith.runtime.runs.memory import Branch, Memory
from cachesmith.runtime.stats import (
    CHANGED_SHAPE,
    NON_FINITE,
    NON_FINITE_OUTPUT,
    OTHER_HISTORY,
    REPEATED,
    UNEXPECTED,
    UNLED,
    Stats,
    Trace,
)


class SamplingRun:
    """One sampling run that follows `plan`, on all its guidance branches."""

    def __init__(
        self, plan: Plan, stats: Stats, constants: DeviceConstants, memory_budget: int | None = None
    ):
        self.plan, self.stats, self.constants = plan, stats, constants
        self.memory = Memory(plan, stats, memory_budget, constants.tensors())
        self._estimator = Estimator(plan, constants)
        self._number, self._step, self._branch_name = 0, 0, ""
        self._compute_all = False
        self._undecided = False
        self._forecasts = 0
        self._seen: set[str] = set()
        self._repeated: set[str] = set()
        self._prepared: set[str] = set()

    @property
    def _branch(self) -> Branch:
        return self.memory.branch(self._branch_name, self._step)

    def begin(self, number: int, step: int, branch: str) -> None:
        """The transformer is called: for which run, sampler step and guidance branch."""
        self._number, self._step, self._branch_name = number, step, branch
        self._compute_all = self._undecided = False
        self._forecasts = 0
        self._seen.clear()
        if self.plan.masks:
            self._trace("".join(sorted({m[step] for m in self.plan.masks.values()})), None)

    def answer(self, call: UnitCall) -> Answer:
        """Forecast the unit, perhaps with tokens to compute, or have all of it computed."""
        unit, branch = call.unit, self._branch
        if unit is self.plan.units[0]:
            self._enter(call)
        self._prepare(unit, call.inputs)
        if self._compute_all or self.plan.probes(unit):
            return COMPUTE_ALL
        match self._decide(branch, unit, call.inputs):
            case Forecast() as decision:
                return self._forecast(branch, unit, decision, call.inputs)
            case Compute(why=why):
                if why is not None:
                    self.stats.fall_back(why)
                return COMPUTE_ALL

    def computes(self, unit: Unit, inputs: Feature) -> bool:
        """Whether `unit` is computed now; a reason that was not planned is counted."""
        if self._compute_all:
            return True
        branch = self._branch
        self.memory.check_budget(branch, unit, inputs)
        decision = self._decide(branch, unit, inputs)
        if isinstance(decision, Compute) and decision.why is not None:
            self.stats.fall_back(decision.why)
        return isinstance(decision, Compute)

    def foresees(self, units: tuple[Unit, ...]) -> bool:
        """Whether all blocks are one unit, and it is forecast in this call, as far as is known before it.

        units: those of the plan that the call is made of.
        """
        if self._compute_all or self.plan.gate is not None or len(network_units(self.plan.units)) > 1:
            return False
        return all(self._planned(self._branch, unit) for unit in units)

    def _planned(self, branch: Branch, unit: Unit) -> bool:
        if unit.name not in branch.histories:
            return False
        decision, steps = self.memory.schedule(branch, unit)[self._step], branch.history(unit).steps
        return isinstance(decision, Forecast) and tuple(steps[: len(decision.sources)]) == decision.sources

    def observe(self, result: UnitResult) -> None:
        """Show a computed unit to the gate, and remember it if a later forecast reads it."""
        unit, branch = result.unit, self._branch
        wrong = self._unusable(result)
        if wrong is not None:
            self._reject(branch, unit, wrong)
            return
        keep = self._keeps(branch, unit)
        looks = self.plan.gate is not None and unit is self.plan.gate.unit
        if not keep and not looks:
            return
        inputs = owned(result.inputs)
        with self.memory.changing(branch, unit):
            if looks:
                self._leave(branch, result, inputs)
            if keep and (self._compute_all or not self.plan.probes(unit)):
                self.memory.remember(branch, self._step, result, inputs)

    def end(self, finite: bool) -> bool:
        """The transformer returned. True to have the call made again, without forecasts: some were not finite."""
        if finite:
            return False
        if self._forecasts > 0:
            self.stats.fall_back(NON_FINITE)
            self._compute_all, self._forecasts = True, 0
            self._seen.clear()
            self.memory.forget_tokens(self._branch)
            return True
        self.stats.fall_back(NON_FINITE_OUTPUT)
        for unit in self.plan.units:
            self.memory.forget(self._branch, unit, self._step + 1)
        return False

    def _prepare(self, unit: Unit, inputs: Feature) -> None:
        """Once a unit: have its constants on its device, and counted, before anything is forecast."""
        if unit.name in self._prepared:
            return
        self._prepared.add(unit.name)
        before = self.constants.tensors()
        self.constants.prepare(unit, inputs)
        self.memory.count(before, self.constants.tensors())

    def _decide(self, branch: Branch, unit: Unit, inputs: Feature) -> Decision:
        """The planned decision, unless what is remembered is not what was planned: then the unit is planned anew."""
        history = branch.history(unit)
        if self.plan.gate is not None:
            if not history.steps:
                return Compute()
            decision: Decision = self.plan.forecast(unit, self._step, history.steps)
        else:
            decision = self.memory.schedule(branch, unit)[self._step]
        if isinstance(decision, Compute):
            return decision
        if tuple(history.steps[: len(decision.sources)]) != decision.sources:
            return self._replanned(branch, unit, OTHER_HISTORY)
        return decision if history.fits(inputs) else self._replanned(branch, unit, CHANGED_SHAPE)

    def _replanned(self, branch: Branch, unit: Unit, why: str) -> Compute:
        self.memory.forget(branch, unit, self._step)
        return Compute(why=why)

    def _keeps(self, branch: Branch, unit: Unit) -> bool:
        """Whether what is computed now is remembered: at a static gate, as planned."""
        if self.plan.gate is not None:
            return True
        decision = self.memory.schedule(branch, unit)[self._step]
        return isinstance(decision, Compute) and decision.keep

    def _forecast(self, branch: Branch, unit: Unit, decision: Forecast, inputs: Feature) -> Answer:
        history = branch.history(unit)
        output = self._estimator.output(unit, decision, history, inputs)
        self._forecasts += 1
        self.stats.forecast[unit.name] += 1
        if self.plan.refresh(unit) is None:
            return UseOutput(output)
        with self.memory.changing(branch, unit):
            refreshed = refresh(self.plan, unit, decision, history, inputs, output)
        if isinstance(refreshed, ComputeTokens):
            return self._counted(branch, unit, refreshed)
        return UseOutput(refreshed)

    def _counted(self, branch: Branch, unit: Unit, tokens: ComputeTokens) -> ComputeTokens:
        """Count the tokens that are computed."""

        def complete(computed: Feature) -> Feature:
            self.stats.count_refreshed(
                unit.name, tokens.fraction, unit.share, self._number, self._branch_name
            )
            with self.memory.changing(branch, unit):
                return tokens.complete(computed)

        return replace(tokens, complete=complete)

    def _unusable(self, result: UnitResult) -> str | None:
        """Why nothing can be forecast from what was computed."""
        if len(result.outputs) != len(result.unit.streams):
            return UNLED if isinstance(result.unit, GuidanceDifference) else UNEXPECTED
        return REPEATED if self._again(result.unit) else None

    def _again(self, unit: Unit) -> bool:
        """Whether calls of the unit cannot be told apart, in this call of the transformer or an earlier one."""
        if unit.name in self._seen:
            self._repeated.add(unit.name)
        self._seen.add(unit.name)
        return unit.name in self._repeated

    def _reject(self, branch: Branch, unit: Unit, why: str) -> None:
        self.memory.forget(branch, unit, self._step + 1)
        self.stats.fall_back(why)
        if self._undecided:
            self._follow(COMPUTE_CALL)

    def _enter(self, call: UnitCall) -> None:
        """At the first unit of a call: check memory once, and let a dynamic gate decide for the whole call."""
        unit, branch = call.unit, self._branch
        self.memory.check_budget(branch, unit, call.inputs)
        if branch.gate is None or self._compute_all:
            return
        modulated = call.modulated or partial(_stream, call.inputs, image_stream(unit))
        with self.memory.changing(branch, unit):
            decision = branch.gate.enter(UnitEntered(self._step, call.inputs, modulated))
        self._undecided = decision is None
        self._follow(decision)

    def _leave(self, branch: Branch, result: UnitResult, inputs: Feature) -> None:
        """After the unit that a dynamic gate looks at was computed."""
        if branch.gate is None:
            return
        unit, history = result.unit, branch.history(result.unit)
        fits = history.fits(inputs)
        last: Callable[[], Feature | None] = lambda: history.outputs[0] if fits else None  # noqa: E731
        forecast = partial(self._own_forecast, unit, history, inputs)
        changed = bool(history.steps) and not fits
        computed = ProbeComputed(self._step, inputs, result.feature, last, forecast, changed)
        decision = branch.gate.leave(computed)
        if self._undecided:  # a call that is made again was decided about, whatever the probe says now
            self._follow(decision)

    def _own_forecast(self, unit: Unit, history: History, inputs: Feature) -> Feature | None:
        """What would have been cached of a unit that was computed."""
        if not history.steps:
            return None
        decision = self.plan.forecast(unit, self._step, history.steps)
        return self._estimator.feature(unit, decision, history, inputs)

    def _follow(self, decision: GateDecision | None) -> None:
        if decision is None:
            return
        self._compute_all, self._undecided = decision.compute, False
        if decision.why is not None:
            self.stats.fall_back(decision.why)
        self._trace("C" if decision.compute else "F", decision.measured)

    def _trace(self, decision: str, measured: float | None) -> None:
        self.stats.trace.append(Trace(self._number, self._step, self._branch_name, decision, measured))


def _stream(feature: Feature, index: int) -> Tensor:
    return feature[index]
