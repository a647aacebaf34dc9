"""What one sampling run remembers of every guidance branch, and how many bytes that takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from cachesmith.policies import PolicyError
from cachesmith.runtime.forecast.estimator import observe_scale
from cachesmith.runtime.forecast.history import Feature, History
from cachesmith.runtime.gates.base import GateState
from cachesmith.runtime.gates.state import new_state
from cachesmith.runtime.ledger import Ledger
from cachesmith.runtime.models.units import Unit
from cachesmith.runtime.plan.plan import Plan
from cachesmith.runtime.stats import Stats


@dataclass
class Branch:
    """State of one guidance branch in one run; branches never share state."""

    gate: GateState | None
    units: dict[str, History] = field(default_factory=dict)

    def history(self, unit: Unit) -> History:
        """What is remembered of `unit`."""
        return self.units.setdefault(unit.name, History())

    def tensors(self, unit: Unit) -> list[Tensor]:
        """Whatever is held for `unit` and by the gate."""
        return [*self.history(unit).tensors(), *(() if self.gate is None else self.gate.tensors())]


class Memory:
    """The branches of one run from step `start`. `stats.cache_bytes` follows what they hold."""

    def __init__(self, plan: Plan, start: int, stats: Stats, budget: int | None):
        self.branches: dict[str, Branch] = {}
        self._plan, self._start, self._stats, self._budget = plan, start, stats, budget
        self._ledger = Ledger()

    def branch(self, name: str) -> Branch:
        """Return the state of a guidance branch, new at its first call."""
        if name not in self.branches:
            self.branches[name] = Branch(new_state(self._plan, self._start))
        return self.branches[name]

    @contextmanager
    def changing(self, branch: Branch, unit: Unit) -> Iterator[None]:
        """Count again what is held for `unit` and by the gate, which may change inside."""
        # `before` keeps alive what is given up, so that no new tensor takes its identity
        before = branch.tensors(unit)
        yield
        self._ledger.swap(before, branch.tensors(unit))
        self._stats.cache_bytes = max(self._stats.cache_bytes, self._ledger.peak)

    def remember(self, branch: Branch, unit: Unit, step: int, inputs: Feature, outputs: Feature) -> None:
        """Keep a computed step for later forecasts."""
        history = branch.history(unit)
        if not history.fits(inputs):
            history.clear()
        if self._plan.keeps(unit, step):
            observe_scale(self._plan.forecaster(unit), history, outputs, inputs)
            history.push(step, outputs, inputs, self._plan.taps(unit), self._plan.input_taps(unit))

    def forget(self, branch: Branch, unit: Unit) -> None:
        """Nothing is forecast from what is remembered of `unit` any more."""
        with self.changing(branch, unit):
            branch.history(unit).clear()

    def check_budget(self, branch: Branch, unit: Unit, inputs: Feature) -> None:
        """At a branch's first call: raise `PolicyError` if the cache will outgrow the budget."""
        if self._budget is None or branch.units:
            return
        shapes = dict(zip(unit.streams, (tuple(t.shape) for t in inputs), strict=True))
        sampler = self._plan.policy.document.sampler
        # a half that follows is a unit of the plan, and counted with it
        halves = any(unit.follower is not None for unit in self._plan.units)
        coming = 2 if sampler is not None and sampler.guidance == "sequential" else 1
        copies = 1 if halves else max(coming, len(self.branches))
        needed = self._plan.bytes(shapes, inputs[0].element_size(), copies)
        if needed > self._budget:
            raise PolicyError(
                f"the cache needs {needed:,} bytes but memory_budget is {self._budget:,}; raise the budget, "
                "sample a smaller batch, or calibrate with coarser units (stack)"
            )
