"""A policy in use: from one sampling run to the next."""

from collections.abc import Callable

from torch import Tensor

from cachesmith.runtime.forecast.estimator import Constants
from cachesmith.runtime.forecast.history import Feature
from cachesmith.runtime.forecast.token_refresh import Partial
from cachesmith.runtime.hooks.clock import Tick
from cachesmith.runtime.match import check_guidance
from cachesmith.runtime.models.units import Unit
from cachesmith.runtime.plan.plan import Plan
from cachesmith.runtime.sampling_run import Run
from cachesmith.runtime.stats import UNKNOWN_STEP, Stats


class Session:
    """A runner that follows a policy. `planner(start)` compiles a plan for a run that begins at step `start`, or
    returns None when the policy is not to be used for this run."""

    def __init__(self, planner: Callable[[int], Plan | None], memory_budget: int | None = None):
        self.stats = Stats()
        self._planner = planner
        self._budget = memory_budget
        self._run: Run | None = None
        self._plan: Plan | None = None
        self._constants: Constants = {}
        self._tick: Tick | None = None
        self._start = 0
        self._seen: set[str] | None = None

    @property
    def plan(self) -> Plan | None:
        """The plan of the current or last run. None before the first transformer call, which settles the number of
        steps, and where the policy is not used."""
        return self._plan

    @property
    def _current(self) -> Run | None:
        """The run, during a call that it can decide about."""
        return None if self._tick is None or self._tick.step is None else self._run

    def begin(self, tick: Tick) -> None:
        """A transformer call: a new run starts clean, an unknown timestep computes everything."""
        if self._tick is None or tick.run != self._tick.run:
            self._start_run(tick)
        self._check_guidance(tick)
        self._tick = tick
        if self._run is None:
            return
        if tick.step is None:
            self.stats.fall_back(tick.why or UNKNOWN_STEP)
        else:
            self._run.call(tick.run, tick.step, tick.branch)

    def offer(self, unit: Unit, modulated: Callable[[], Tensor]) -> None:
        """The unit is about to be called, and this makes its modulated input."""
        if (run := self._current) is not None:
            run.offer(unit, modulated)

    def forecast(self, unit: Unit, inputs: Feature) -> Feature | Partial | None:
        """Return the unit's forecast, perhaps with tokens to compute, or None to have all of it computed."""
        run = self._current
        return None if run is None else run.forecast(unit, inputs)

    def computes(self, unit: Unit, inputs: Feature) -> bool:
        """Whether `unit` is to be computed now, for inputs of this shape."""
        run = self._current
        return run is None or run.computes(unit, inputs)

    def observe(self, unit: Unit, inputs: Feature, outputs: Feature) -> None:
        """Remember a computed unit."""
        if self._tick is None:
            return
        # the halves of a batch count as branches, as they do where they are calls of their own
        branch = self._tick.branch if unit.follower is None else f"{self._tick.branch} {unit.name}"
        self.stats.count_computed(unit.name, unit.share, self._tick.run, branch)
        if (run := self._current) is not None:
            run.observe(unit, inputs, outputs)

    def close(self) -> None:
        """The last run is over: look at what was not looked at, then free everything but the plan and the stats."""
        self._end_run()
        self.free()

    def free(self) -> None:
        """Free the cache, and what was copied to the device of the policy's arrays."""
        self._run = None
        self._constants.clear()

    def _end_run(self) -> None:
        if self._run is not None:
            self._run.close()

    def _start_run(self, tick: Tick) -> None:
        self._end_run()
        self.stats.start_run()
        self._run = None  # frees what the last run holds before anything new is made
        self._start = tick.step or 0
        self._seen = set()
        self._plan = plan = self._planner(self._start)
        if plan is not None:
            self._run = Run(plan, self._start, self.stats, self._constants, self._budget)

    def _check_guidance(self, tick: Tick) -> None:
        """Once a run, after its first step: as many branches as the policy was fitted for?"""
        if self._seen is None or self._run is None:
            return
        if tick.step == self._start or not self._seen:
            self._seen.add(tick.branch)
            return
        if not check_guidance(self._run.plan.policy, len(self._seen)):
            self._run = self._plan = None
        self._seen = None
