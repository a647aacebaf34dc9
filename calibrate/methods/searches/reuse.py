"""The whole stack reused, or on a line, on one schedule after another: what the searches judge."""

from collections import OrderedDict, defaultdict
from collections.abc import Sequence

from cachesmith.policies import Fixed, Forecaster, Policy, Profile, Reuse, Stack, unbound
from cachesmith.policies.schedule import from_steps
from cachesmith.runtime import (
    COMPUTE_ALL,
    Answer,
    Feature,
    Tick,
    UnitCall,
    UnitResult,
    UseOutput,
    Watcher,
    watch,
)
from cachesmith.sampling.pictures import Pictures
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request

_KEPT = 16
"""Computed steps that are remembered of a batch and branch."""


def reusing(computed: Sequence[int], steps: int) -> Policy:
    """Return the policy that computes these steps and reuses the stack's residual at all others."""
    gate = Fixed(mask=from_steps(computed, steps))
    return unbound(Profile(units=Stack(), gate=gate, forecaster=Forecaster(rows=Reuse())))


class ScheduleSampler(Watcher):
    """Samples the same `requests` on schedule after schedule, with reuse of the stack or, if `line`, by a line.

    Up to the first step in which two schedules differ their runs are the same, so a step that the last ones computed
    from the same beginning is not computed again.
    """

    def __init__(self, renderer: Renderer, requests: Sequence[Request], line: bool = False):
        super().__init__()
        self._renderer, self._requests, self._line = renderer, requests, line
        self._mask, self._batch = "", -1
        self._run: int | None = None
        self._known: dict[tuple[int, str], OrderedDict[str, UnitResult]] = defaultdict(OrderedDict)

    def __call__(self, computed: Sequence[int]) -> Pictures:
        """Sample on the schedule that computes these steps."""
        self._mask = from_steps(computed, self._renderer.steps)
        self._batch, self._run = -1, None
        with watch(self._renderer.pipe, Stack(), self):
            return self._renderer(self._requests)

    def begin(self, tick: Tick) -> None:
        """A transformer call; every run samples the next batch."""
        if tick.run != self._run:
            self._run, self._batch = tick.run, self._batch + 1
        self._tick = tick

    def answer(self, call: UnitCall) -> Answer:
        """What is known of the step, else its forecast."""
        step = self._tick.step
        if step is None:
            return COMPUTE_ALL
        known = self._known[self._batch, self._tick.branch]
        if self._mask[step] == "C":
            beginning = self._mask[: step + 1]
            if beginning not in known:
                return COMPUTE_ALL
            known.move_to_end(beginning)
            return UseOutput(known[beginning].outputs)
        return UseOutput(self._forecast(step, call.inputs, known))

    def _forecast(self, step: int, inputs: Feature, known: "OrderedDict[str, UnitResult]") -> Feature:
        computed = [s for s in range(step) if self._mask[s] == "C"][-2:]
        found = [known[self._mask[: s + 1]].feature for s in computed]
        if len(found) < 2 or not self._line:
            return tuple(now + last for now, last in zip(inputs, found[-1], strict=True))
        ahead = (step - computed[1]) / (computed[1] - computed[0])
        return tuple(now + last + ahead * (last - old) for now, old, last in zip(inputs, *found, strict=True))

    def observe(self, result: UnitResult) -> None:
        """Remember a computed step."""
        if self._tick.step is not None:
            known = self._known[self._batch, self._tick.branch]
            known[self._mask[: self._tick.step + 1]] = result
            if len(known) > max(_KEPT, 2 * self._mask.count("C")):
                known.popitem(last=False)
