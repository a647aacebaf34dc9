"""The one place where it is decided and done: compute a unit, or forecast it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from cachesmith.policies import PolicyError
from cachesmith.runtime.clock import Tick
from cachesmith.runtime.estimate import Estimator, observe_scale
from cachesmith.runtime.gates import new_state
from cachesmith.runtime.history import Feature, History, finite
from cachesmith.runtime.ledger import Ledger
from cachesmith.runtime.match import check_guidance
from cachesmith.runtime.plan import Compute, Forecast, Plan
from cachesmith.runtime.refresh import Partial, refresh
from cachesmith.runtime.stats import (
    CHANGED_SHAPE,
    NON_FINITE,
    NON_FINITE_OUTPUT,
    UNEXPECTED,
    UNKNOWN_STEP,
    Stats,
    Trace,
)
from cachesmith.runtime.units import Unit
from cachesmith.runtime.verdict import Computed, Entered, GateState, Verdict


@dataclass
class Branch:
    """State of one guidance branch in one run; branches never share state."""

    gate: GateState | None
    units: dict[str, History] = field(default_factory=dict)


class Session:
    """A runner that follows a policy. `planner(start)` compiles a plan for a run that begins at step `start`, or
    returns None when the policy is not to be used for this run."""

    def __init__(self, planner: Callable[[int], Plan | None], memory_budget: int | None = None):
        self.stats = Stats()
        self.plan: Plan | None = None
        self._planner = planner
        self._budget = memory_budget
        self._branches: dict[str, Branch] = {}
        self._ledger = Ledger()
        self._estimator: Estimator | None = None
        self._tick: Tick | None = None
        self._start = 0
        self._seen: set[str] | None = None
        self._compute_all = False
        self._undecided = False
        self._modulated: Callable[[], Tensor] | None = None

    def begin(self, tick: Tick) -> None:
        """A transformer call: a new run starts clean, an unknown timestep computes everything."""
        if self._tick is None or tick.run != self._tick.run:
            self._start_run(tick)
        self._check_guidance(tick)
        self._tick = tick
        self._compute_all = tick.step is None or self.plan is None
        self._undecided = False
        if tick.step is None and self.plan is not None:
            self.stats.fall_back(UNKNOWN_STEP)
        if not self._compute_all:
            self._settle_static()

    def offer(self, unit: Unit, modulated: Callable[[], Tensor]) -> None:
        """The unit is about to be called, and this makes its modulated input."""
        if self.plan is not None and unit is self.plan.units[0]:
            self._modulated = modulated

    def forecast(self, unit: Unit, inputs: Feature) -> Feature | Partial | None:
        """Return the unit's forecast, perhaps with tokens to compute, or None to have all of it computed."""
        if self._compute_all or self.plan is None or self._tick is None or self._tick.step is None:
            return None
        if unit is self.plan.units[0]:
            self._settle_first(unit, inputs)
        if self._compute_all or self.plan.always(unit):
            return None
        history = self._history(unit)
        match self.plan.decide(unit, self._tick.step, history.steps):
            case Compute(why=why):
                if why is not None:
                    self.stats.fall_back(why)
                return None
            case Forecast() as decision:
                return self._estimate(unit, decision, history, inputs)

    def observe(self, unit: Unit, inputs: Feature, outputs: Feature) -> None:
        """Remember a computed unit."""
        tick = self._tick
        if tick is None:
            return
        self.stats.count_computed(unit.name, unit.share, tick.run, tick.branch)
        if self.plan is None or tick.step is None:
            return
        if len(outputs) != len(unit.streams):
            self._reject(unit, UNEXPECTED)
            return
        # Embedders hand over transposed views; mixed layouts would make every later sum several times slower.
        inputs = tuple(t.contiguous() for t in inputs)
        if unit.residual:
            outputs = tuple(new - old for new, old in zip(outputs, inputs, strict=True))
        if _on_host(outputs) and not finite(outputs):
            self._reject(unit, NON_FINITE_OUTPUT)
            return
        before = self._held(unit)
        self._tell_gate(unit, tick.step, inputs, outputs)
        if self._compute_all or not self.plan.always(unit):
            self._remember(unit, tick.step, inputs, outputs)
        self._hold(before, self._held(unit))

    def _remember(self, unit: Unit, step: int, inputs: Feature, outputs: Feature) -> None:
        assert self.plan is not None
        history = self._history(unit)
        if not history.fits(inputs):
            history.clear()
        if self.plan.keeps(unit, step):
            observe_scale(self.plan.forecaster(unit), history, outputs, inputs)
            history.push(step, outputs, inputs, self.plan.taps(unit), self.plan.input_taps(unit))

    def _forget(self, unit: Unit) -> None:
        history = self._history(unit)
        self._hold(history.tensors(), [])
        history.clear()

    def _reject(self, unit: Unit, why: str) -> None:
        """Nothing can be forecast from what was computed."""
        self._forget(unit)
        self.stats.fall_back(why)
        if self._undecided:
            self._follow(Verdict(True))

    def _start_run(self, tick: Tick) -> None:
        self._branches.clear()
        self._ledger = Ledger()
        self._start = tick.step or 0
        self._seen = set()
        self.plan = self._planner(self._start)
        self._estimator = None if self.plan is None else Estimator(self.plan)

    def _check_guidance(self, tick: Tick) -> None:
        """Once a run, after its first step: as many branches as the policy was fitted for?"""
        if self._seen is None or self.plan is None:
            return
        if tick.step == self._start or not self._seen:
            self._seen.add(tick.branch)
            return
        if not check_guidance(self.plan.policy, len(self._seen)):
            self.plan = None
        self._seen = None

    def _settle_static(self) -> None:
        assert self.plan is not None and self._tick is not None and self._tick.step is not None
        if self.plan.masks:
            letters = {m[self._tick.step] for m in self.plan.masks.values()}
            self._record("".join(sorted(letters)), None)

    def _settle_first(self, unit: Unit, inputs: Feature) -> None:
        """At the first unit of a call: check memory once, and let a dynamic gate decide for the whole call."""
        assert self._tick is not None and self._tick.step is not None
        if self._budget is not None and not self._branch().units:
            self._check_budget(unit, inputs)
        gate = self._branch().gate
        if gate is None:
            return
        offered, self._modulated = self._modulated, None
        before = gate.tensors()
        verdict = gate.enter(Entered(self._tick.step, inputs, offered or (lambda: inputs[unit.main])))
        self._hold(before, gate.tensors())
        self._undecided = verdict is None
        if verdict is not None:
            self._follow(verdict)

    def _tell_gate(self, unit: Unit, step: int, inputs: Feature, outputs: Feature) -> None:
        assert self.plan is not None
        gate = self._branch().gate
        if gate is None or unit is not self.plan.gauge:
            return
        history = self._history(unit)
        forecast = partial(self._own_forecast, unit, step, history, inputs)
        verdict = gate.leave(Computed(step, inputs, outputs, history, forecast))
        if verdict is not None:
            self._follow(verdict)

    def _own_forecast(self, unit: Unit, step: int, history: History, inputs: Feature) -> Feature | None:
        """What would have been forecast of a unit that was computed: for runs of blocks, the residual."""
        assert self.plan is not None and self._estimator is not None
        decision = self.plan.decide(unit, step, history.steps)
        if not isinstance(decision, Forecast):
            return None
        return self._estimator(replace(unit, residual=False), decision, history, inputs)

    def _follow(self, verdict: Verdict) -> None:
        self._compute_all, self._undecided = verdict.compute, False
        if verdict.why is not None:
            self.stats.fall_back(verdict.why)
        self._record("C" if verdict.compute else "F", verdict.demand)

    def _estimate(
        self, unit: Unit, decision: Forecast, history: History, inputs: Feature
    ) -> Feature | Partial | None:
        assert self.plan is not None and self._estimator is not None
        if not history.fits(inputs):
            self._forget(unit)
            self.stats.fall_back(CHANGED_SHAPE)
            return None
        inputs = tuple(t.contiguous() for t in inputs)
        result = self._estimator(unit, decision, history, inputs)
        if _on_host(result) and not finite(result):
            self.stats.fall_back(NON_FINITE)
            return None
        self.stats.forecast[unit.name] += 1
        before = self._held(unit)
        refreshed = refresh(self.plan, unit, decision, history, inputs, result)
        self._hold(before, self._held(unit))
        return self._watched(unit, history, refreshed) if isinstance(refreshed, Partial) else refreshed

    def _watched(self, unit: Unit, history: History, some: Partial) -> Partial:
        """Count and check the tokens that are computed."""

        def complete(computed: Feature) -> Feature:
            assert self._tick is not None
            run, branch = self._tick.run, self._tick.branch
            self.stats.count_refreshed(unit.name, some.fraction, unit.share, run, branch)
            before = self._held(unit)
            result = some.complete(computed)
            if _on_host(computed) and not finite(computed):
                history.clear()
                self.stats.fall_back(NON_FINITE_OUTPUT)
            self._hold(before, self._held(unit))
            return result

        return replace(some, complete=complete)

    def _check_budget(self, unit: Unit, inputs: Feature) -> None:
        assert self.plan is not None and self._budget is not None
        shapes = dict(zip(unit.streams, (tuple(t.shape) for t in inputs), strict=True))
        needed = self.plan.bytes(shapes, inputs[0].element_size(), len(self._branches))
        if needed > self._budget:
            raise PolicyError(
                f"the cache needs {needed:,} bytes but memory_budget is {self._budget:,}; raise the budget, "
                "sample a smaller batch, or calibrate with coarser units (stack)"
            )

    def _record(self, decision: str, demand: float | None) -> None:
        assert self._tick is not None and self._tick.step is not None
        self.stats.trace.append(Trace(self._tick.run, self._tick.step, self._tick.branch, decision, demand))

    def _held(self, unit: Unit) -> list[Tensor]:
        gate = self._branch().gate
        return [*self._history(unit).tensors(), *(() if gate is None else gate.tensors())]

    def _hold(self, before: list[Tensor], after: list[Tensor]) -> None:
        """Instead of `before`, `after` is held; nothing is freed before this is called."""
        self._ledger.swap(before, after)
        self.stats.cache_bytes = max(self.stats.cache_bytes, self._ledger.peak)

    def _branch(self) -> Branch:
        assert self._tick is not None and self.plan is not None
        if self._tick.branch not in self._branches:
            self._branches[self._tick.branch] = Branch(new_state(self.plan, self._start))
        return self._branches[self._tick.branch]

    def _history(self, unit: Unit) -> History:
        return self._branch().units.setdefault(unit.name, History())


def _on_host(feature: Feature) -> bool:
    """A finite check costs a stall on an accelerator, and next to nothing on the host."""
    return feature[0].device.type == "cpu"
