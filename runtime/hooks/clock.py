"""Which step, branch and run a transformer call belongs to.

The scheduler is the only clock: `set_timesteps` starts a run, `step` moves it on, and the timestep argument is checked
against the scheduler's list. Counting transformer calls would go wrong with guidance, a second request or an
interrupted run.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cachesmith.runtime.hooks.patch import heard

MOST_CALLS = 8
"""Calls in one step and cache context; with more, the scheduler is not what moves the sampler on."""

TOLERANCE = 1e-3
"""Of a timestep in float32, on the scheduler's scale of 0 to 1000."""


@dataclass(frozen=True)
class Tick:
    """One transformer call. `step` is None when nothing is to be forecast: the timestep is not one of the scheduler's,
    or for another reason, `why`. `latents` are what the transformer is called with."""

    run: int
    step: int | None
    branch: str
    why: str | None = None
    latents: Tensor | None = field(default=None, compare=False, repr=False)


class Clock:
    """Locates transformer calls on the scheduler's list of timesteps.

    A host timestep is looked up by value. For one on an accelerator that would stall the stream, so only the first of
    a run is read; after that the scheduler's own progress tells the step. Where there is none, as in loops that never
    call `scheduler.step`, all are read once that is noticed.
    """

    def __init__(self, scale: float = 1.0, shift: float = 0.0):
        self.run = 0
        self.context: str | None = None
        self._scale, self._shift = scale, shift
        self._scheduler: Any = None
        self._host: list[float] | None = None
        self._anchor: int | None = None
        self._last: int | None = None
        self._stepped = 0
        self._stuck = False
        self._calls: Counter[str | None] = Counter()

    @contextmanager
    def follow(self, scheduler: Any) -> Iterator["Clock"]:
        """Watch `scheduler` while the context is open."""
        self._scheduler = scheduler
        restarts = heard(scheduler, "set_timesteps", lambda *_, **__: self._restart())
        with restarts, heard(scheduler, "step", lambda *_, **__: self._advance()):
            yield self

    def timesteps(self) -> list[float]:
        """The run's timesteps on the host; read from the device once a run."""
        if self._host is None:
            self._host = [float(t) for t in torch.as_tensor(self._scheduler.timesteps).tolist()]
        return self._host

    def tick(self, timestep: Tensor | float) -> Tick:
        """Place one transformer call."""
        step = self._locate(timestep)
        if step is not None and self._last is not None and step < self._last:
            # back in time without `set_timesteps`: a new run all the same
            self._restart()
            self._anchor = step
        if step != self._last:
            self._calls.clear()
        self._last = step
        return Tick(self.run, step, self._branch())

    def _branch(self) -> str:
        """The cache context, or else the order of calls within a step, tells the guidance branches apart."""
        count = self._calls[self.context]
        self._calls[self.context] += 1
        if self.context is None:
            return str(count)
        return f"{self.context}.{count}" if count else self.context

    def _restart(self) -> None:
        self.run += 1
        self._host = self._anchor = self._last = None
        self._stepped = 0
        self._stuck = False
        self._calls.clear()

    def _advance(self) -> None:
        self._stepped += 1

    def _locate(self, timestep: Tensor | float) -> int | None:
        expected = None if self._anchor is None else self._anchor + self._stepped
        self._stuck = self._stuck or (self._stepped == 0 and self._calls[self.context] >= MOST_CALLS)
        afar = isinstance(timestep, Tensor) and timestep.device.type != "cpu"
        if expected is not None and afar and not self._stuck:
            return expected if expected < len(self.timesteps()) else None
        if expected is None:
            expected = getattr(self._scheduler, "begin_index", None)
        step = self._find(*self._read(timestep), expected)
        if step is not None:
            self._anchor = step - self._stepped
        return step

    def _read(self, timestep: Tensor | float) -> tuple[float, float]:
        """Return the scheduler's timestep, and how far rounding may have moved it.

        Pipelines that hold some tokens clean give those timestep 0: the largest is the step's.
        """
        values = torch.as_tensor(timestep)
        rounding = torch.finfo(values.dtype).eps if values.is_floating_point() else 0.0
        scaled = values.double() * self._scale
        return float((scaled + self._shift).max()), max(TOLERANCE, rounding * float(scaled.abs().max()))

    def _find(self, value: float, tolerance: float, expected: int | None) -> int | None:
        steps = self.timesteps()
        if expected is not None and expected < len(steps) and abs(steps[expected] - value) <= tolerance:
            return expected
        nearest = min(range(len(steps)), key=lambda i: abs(steps[i] - value), default=None)
        if nearest is None or abs(steps[nearest] - value) > tolerance:
            return None
        # second-order schedulers list a timestep twice; entering in the middle means the second, as in diffusers
        twice = 0 < nearest < len(steps) - 1 and steps[nearest + 1] == steps[nearest]
        return nearest + 1 if twice else nearest
