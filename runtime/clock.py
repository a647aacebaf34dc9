"""Which step, branch and run a transformer call belongs to.

The scheduler is the only clock: `set_timesteps` starts a run, `step` moves it on, and the timestep argument is checked
against the scheduler's list. Counting transformer calls would go wrong with guidance, a second request or an
interrupted run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .patch import patched


@dataclass(frozen=True)
class Tick:
    """One transformer call. `step` is None when the timestep is not one of the scheduler's: nothing is forecast."""

    run: int
    step: int | None
    branch: str


class Clock:
    """Locates transformer calls on the scheduler's list of timesteps.

    A host timestep is looked up by value. For one on an accelerator that would stall the stream, so only the first of
    a run is read; after that the scheduler's own progress tells the step.
    """

    def __init__(self, scale: float = 1.0):
        self.run = 0
        self.context: str | None = None
        self._scale = scale
        self._scheduler: Any = None
        self._restart()

    @contextmanager
    def follow(self, scheduler: Any) -> Iterator["Clock"]:
        """Watch `scheduler` while the context is open."""
        self._scheduler = scheduler
        set_timesteps, step = scheduler.set_timesteps, scheduler.step

        def on_set_timesteps(*args: Any, **kwargs: Any) -> Any:
            result = set_timesteps(*args, **kwargs)
            self._restart()
            return result

        def on_step(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            self._stepped += 1
            return result

        with patched(scheduler, "set_timesteps", on_set_timesteps), patched(scheduler, "step", on_step):
            yield self

    def timesteps(self) -> list[float]:
        """The run's timesteps on the host; read from the device once a run."""
        if self._host is None:
            self._host = [float(t) for t in torch.as_tensor(self._scheduler.timesteps).tolist()]
        return self._host

    def tick(self, timestep: Tensor | float) -> Tick:
        """Place one transformer call."""
        step = self._locate(timestep)
        self._calls = self._calls + 1 if step == self._last else 0
        self._last = step
        return Tick(self.run, step, self.context or str(self._calls))

    def _restart(self) -> None:
        self.run += 1
        self._host: list[float] | None = None
        self._anchor: int | None = None
        self._stepped = 0
        self._last: int | None = None
        self._calls = -1

    def _locate(self, timestep: Tensor | float) -> int | None:
        expected = None if self._anchor is None else self._anchor + self._stepped
        on_host = not isinstance(timestep, Tensor) or timestep.device.type == "cpu"
        if expected is not None and not on_host:
            return expected if expected < len(self.timesteps()) else None
        step = self._find(_first(timestep) * self._scale, expected)
        if step is not None:
            self._anchor = step - self._stepped
        return step

    def _find(self, value: float, expected: int | None) -> int | None:
        steps = self.timesteps()
        tolerance = 1e-3 * max(1.0, abs(value)) if self._scale != 1.0 else 1e-4 * max(1.0, abs(value))
        matches = [i for i, t in enumerate(steps) if abs(t - value) <= tolerance]
        if not matches:
            return None
        # Schedulers of second order list a timestep twice; their progress tells which one this is.
        return expected if expected in matches else min(matches, key=lambda i: (abs(steps[i] - value), i))


def _first(timestep: Tensor | float) -> float:
    return float(timestep.reshape(-1)[0]) if isinstance(timestep, Tensor) else float(timestep)

