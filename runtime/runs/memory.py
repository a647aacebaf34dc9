"""What one sampling run remembers of every guidance branch, and how many bytes that takes."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from cachesmith.policies import PolicyError
from cachesmith.runtime.features import Feature, owned
from cachesmith.runtime.forecast.estimator import observe_scale
from cachesmith.runtime.forecast.history import History
from cachesmith.runtime.gates.base import GateState
from cachesmith.runtime.hooks.runner import UnitResult
from cachesmith.runtime.models.units import Unit, guidance_difference
from cachesmith.runtime.plan.cache_size import cache_bytes
from cachesmith.runtime.plan.plan import Decision, Plan
from cachesmith.runtime.stats import Stats


class Holdings:
    """Bytes of the storages held now, and at most so far; a storage that several tensors share counts once."""

    def __init__(self) -> None:
        self.bytes = 0
        self.peak = 0
        self._holders: Counter[tuple[object, int]] = Counter()

    def swap(self, before: Iterable[Tensor], after: Iterable[Tensor]) -> None:
        """One holder held `before` and now holds `after`; all of them must be alive during this call."""
        for tensor in after:
            key = _storage(tensor)
            self._holders[key] += 1
            if self._holders[key] == 1:
                self.bytes += tensor.untyped_storage().nbytes()
        for tensor in before:
            key = _storage(tensor)
            self._holders[key] -= 1
            if not self._holders[key]:
                del self._holders[key]
                self.bytes -= tensor.untyped_storage().nbytes()
        self.peak = max(self.peak, self.bytes)


def _storage(tensor: Tensor) -> tuple[object, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


@dataclass
class Branch:
    """State of one guidance branch in one run; branches never share state. `start`: its first step."""

    start: int
    gate: GateState | None
    histories: dict[str, History] = field(default_factory=dict)
    schedules: dict[str, tuple[Decision, ...]] = field(default_factory=dict)

    def history(self, unit: Unit) -> History:
        """What is remembered of `unit`."""
        if unit.name not in self.histories:
            self.histories[unit.name] = History()
        return self.histories[unit.name]

    def tensors(self, unit: Unit) -> list[Tensor]:
        """Whatever is held for `unit` and by the gate."""
        return [*self.history(unit).tensors(), *(() if self.gate is None else self.gate.tensors())]


class Memory:
    """The branches of one run. `stats.cache_bytes` follows what they hold, and what the policy's arrays take."""

    def __init__(self, plan: Plan, stats: Stats, budget: int | None, constants: Iterable[Tensor]):
        self.branches: dict[str, Branch] = {}
        self._plan, self._stats, self._budget = plan, stats, budget
        self._holdings = Holdings()
        self._holdings.swap((), constants)

    def branch(self, name: str, step: int) -> Branch:
        """The state of a guidance branch, new at its first call, at `step`."""
        if name not in self.branches:
            rules = self._plan.gate
            self.branches[name] = Branch(step, None if rules is None else rules.state(self._plan.times, step))
        return self.branches[name]

    def schedule(self, branch: Branch, unit: Unit) -> tuple[Decision, ...]:
        """What is done with `unit` at every step, from where something is known of it."""
        if unit.name not in branch.schedules:
            branch.schedules[unit.name] = self._plan.schedule(unit, branch.start)
        return branch.schedules[unit.name]

    @contextmanager
    def changing(self, branch: Branch, unit: Unit) -> Iterator[None]:
        """Count again what is held for `unit` and by the gate, which may change inside."""
        # `before` keeps alive what is given up, so that no new tensor takes its address
        before = branch.tensors(unit)
        yield
        self.count(before, branch.tensors(unit))

    def count(self, before: Iterable[Tensor], after: Iterable[Tensor]) -> None:
        """What was held as `before` is now held as `after`."""
        self._holdings.swap(before, after)
        self._stats.cache_bytes = max(self._stats.cache_bytes, self._holdings.peak)

    def remember(self, branch: Branch, step: int, result: UnitResult, inputs: Feature) -> None:
        """Keep a computed step for later forecasts; `inputs` are the unit's, owned."""
        unit, history = result.unit, branch.history(result.unit)
        if history.steps and not history.fits(inputs):
            history.clear()
            self._plan_anew(branch, unit, step)
        history.drop(step)
        feature = owned(result.feature)
        if self._plan.observes_scale(unit):
            observe_scale(history, feature, inputs)
        history.push(step, feature, inputs, self._plan.taps(unit), self._plan.input_taps(unit))

    def forget(self, branch: Branch, unit: Unit, step: int) -> None:
        """Nothing is forecast from what is remembered of `unit`; at a static gate, it is planned anew from `step`."""
        with self.changing(branch, unit):
            branch.history(unit).clear()
        self._plan_anew(branch, unit, step)

    def forget_tokens(self, branch: Branch) -> None:
        """Some forecasts were not finite: what single tokens have learned is not added to the next ones."""
        for unit in self._plan.units:
            with self.changing(branch, unit):
                branch.history(unit).tokens = None

    def _plan_anew(self, branch: Branch, unit: Unit, step: int) -> None:
        if self._plan.masks:
            branch.schedules[unit.name] = self._plan.schedule(unit, step)

    def check_budget(self, branch: Branch, unit: Unit, inputs: Feature) -> None:
        """At a branch's first call: raise `PolicyError` if the cache will outgrow the budget."""
        if self._budget is None or branch.histories:
            return
        shapes = dict(zip(unit.streams, (tuple(t.shape) for t in inputs), strict=True))
        needed = cache_bytes(
            self._plan, shapes, inputs[0].element_size(), self._expected_branches(), branch.start
        )
        if needed > self._budget:
            raise PolicyError(
                f"the cache needs {needed:,} bytes but memory_budget is {self._budget:,}; raise the budget, "
                "sample a smaller batch, or calibrate with coarser units (stack)"
            )

    def _expected_branches(self) -> int:
        """A difference between branches is a unit of the plan, and counted with it."""
        if guidance_difference(self._plan.units) is not None:
            return 1
        sampler = self._plan.policy.document.sampler
        return max(2 if sampler is not None and sampler.guidance == "sequential" else 1, len(self.branches))
