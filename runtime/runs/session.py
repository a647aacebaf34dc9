"""A policy in use: from one sampling run to the next."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from cachesmith.policies import PolicyError
from cachesmith.runtime.features import Feature, total
from cachesmith.runtime.forecast.device_constants import DeviceConstants
from cachesmith.runtime.hooks.clock import Tick
from cachesmith.runtime.hooks.runner import COMPUTE_ALL, Answer, ComputeAll, UnitCall, UnitResult
from cachesmith.runtime.match import check_guidance
from cachesmith.runtime.models.units import GuidanceDifference, Unit
from cachesmith.runtime.plan.plan import Plan
from cachesmith.runtime.runs.sampling_run import SamplingRun
from cachesmith.runtime.stats import NOT_WHOLE, UNKNOWN_STEP, Stats

Planner = Callable[[int], Plan | None]
"""Gives the plan for a run that begins at a step, or None when the policy is not to be used for this run."""


class Session:
    """A runner that follows a policy: the plans of its planner, see `follow`."""

    def __init__(
        self,
        memory_budget: int | None = None,
        switch: Callable[[str], None] | None = None,
        stats: Stats | None = None,
    ):
        self.stats = stats or Stats()
        self._planner: Planner = lambda _: None
        self._switch = switch
        self._budget = memory_budget
        self._run: SamplingRun | None = None
        self._plan: Plan | None = None
        self._constants: DeviceConstants | None = None
        self._tick: Tick | None = None
        self._start = 0
        self._seen: set[str] | None = None
        self._known = False  # whether a unit was computed or forecast in the call in hand
        # outputs on an accelerator, added up: they are looked at once the run is over
        self._totals: dict[torch.device, Tensor] = {}

    def use(self, profile: str) -> None:
        """Follow another profile of the policy from the next run on. Call it between requests.

        Raises `PolicyError` where the policy has no such profile, or it does not fit, or a request is in progress; the
        present one then stays.
        """
        if self._switch is None:
            raise PolicyError("this session has one plan only; make it with `apply` or `enable`")
        self._switch(profile)

    def follow(self, planner: Planner) -> None:
        """From the next run on, follow the plans of `planner`."""
        self._end_run()
        self.free()
        self._planner, self._tick = planner, None

    @property
    def plan(self) -> Plan | None:
        """The plan of the current or last run. None before the first transformer call, which settles the number of
        steps, and where the policy is not used."""
        return self._plan

    @property
    def _current(self) -> SamplingRun | None:
        """The run, during a call that it can decide about."""
        return None if self._tick is None or self._tick.step is None else self._run

    def begin(self, tick: Tick) -> None:
        """A transformer call: a new run starts clean, an unknown timestep computes everything."""
        if self._tick is None or tick.run != self._tick.run:
            self._start_run(tick)
        self._check_guidance(tick)
        self._tick, self._known = replace(tick, latents=None), False
        if self._run is None:
            return
        if tick.step is None:
            self.stats.fall_back(tick.why or UNKNOWN_STEP)
        else:
            self._run.begin(tick.run, tick.step, tick.branch)

    def answer(self, call: UnitCall) -> Answer:
        """Forecast the unit, or have it computed."""
        run = self._current
        answer = COMPUTE_ALL if run is None else run.answer(call)
        self._known |= not isinstance(answer, ComputeAll)
        return answer

    def computes(self, unit: Unit, inputs: Feature) -> bool:
        """Whether `unit` is to be computed now, for inputs of this shape."""
        run = self._current
        return run is None or run.computes(unit, inputs)

    def foresees(self, units: tuple[Unit, ...]) -> bool:
        """Whether all blocks are going to be forecast as one unit in this call, see `SamplingRun.foresees`."""
        run = self._current
        return run is not None and run.foresees(units)

    def holds(self, before: Feature, after: Feature) -> None:
        """Somebody holds `after` where `before` was held, for this run: count it."""
        if self._run is not None:
            self._run.memory.count(before, after)

    def observe(self, result: UnitResult) -> None:
        """Remember a computed unit."""
        if self._tick is None:
            return
        self._known = True
        unit, branch = result.unit, self._tick.branch
        # branches of guidance in one batch count as they do where they are calls of their own
        if isinstance(unit, GuidanceDifference):
            branch = f"{branch} {unit.group}"
        self.stats.count_computed(unit.name, unit.share, self._tick.run, branch)
        if (run := self._current) is not None:
            run.observe(result)

    def end(self, output: Tensor) -> bool:
        """The transformer returned; True to have the call made again without forecasts, since it was not finite."""
        run = self._current
        if run is None or self._tick is None:
            return False
        if not self._known:
            self.stats.count_whole(self._tick.run, self._tick.branch)
            self.stats.fall_back(NOT_WHOLE)
        if _on_host(output):
            return run.end(bool(torch.isfinite(total(output))))
        if output.device in self._totals:
            self._totals[output.device].add_(total(output))
        else:
            self._totals[output.device] = total(output)
        return False

    def close(self) -> None:
        """The last run is over: look at what was not looked at, then free everything but the plan and the stats."""
        self._end_run()
        self.free()

    def called_at(self, run: int, step: int) -> bool:
        """Whether the last call was at that step of that run."""
        return self._tick is not None and (self._tick.run, self._tick.step) == (run, step)

    def free(self) -> None:
        """Free the cache, and what was copied to the device of the policy's arrays."""
        self._run = self._constants = None

    def _end_run(self) -> None:
        totals, self._totals = self._totals, {}
        if not all(bool(torch.isfinite(value)) for value in totals.values()):
            self.stats.distrust()

    def _start_run(self, tick: Tick) -> None:
        self._end_run()
        self.stats.start_run()
        self._run = None  # frees what the last run holds before anything new is made
        self._start = tick.step or 0
        self._seen = set()
        self._plan = plan = self._planner(self._start)
        if plan is None:
            return
        if self._constants is None or self._constants.plan is not plan:
            self._constants = DeviceConstants(plan)
        self._run = SamplingRun(plan, self.stats, self._constants, self._budget)

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


def _on_host(tensor: Tensor) -> bool:
    """Whether looking at `tensor` stalls nothing."""
    return tensor.device.type == "cpu"
