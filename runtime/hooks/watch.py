"""Watch the units of a pipeline outside of any policy: the clock is followed, a runner attached."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from cachesmith.policies import Units
from cachesmith.runtime.hooks.attach import attach, clock_for
from cachesmith.runtime.hooks.clock import Tick
from cachesmith.runtime.hooks.runner import COMPUTE_ALL, Answer, Runner, UnitBackend, UnitCall, UnitResult
from cachesmith.runtime.models.units import resolve_units


class Watcher(ABC):
    """A runner that has every unit computed, and says in `observe` what it keeps of it."""

    def __init__(self) -> None:
        self._tick = Tick(0, None, "")

    def begin(self, tick: Tick) -> None:
        """A transformer call; `restart` hears of a new run first."""
        if tick.run != self._tick.run:
            self.restart()
        self._tick = tick

    def restart(self) -> None:  # noqa: B027
        """A run begins that is not the first: by default, what was kept stays."""

    def answer(self, call: UnitCall) -> Answer:
        """Have everything computed."""
        return COMPUTE_ALL

    @abstractmethod
    def observe(self, result: UnitResult) -> None:
        """A unit was computed."""

    def end(self, output: Tensor) -> bool:
        """The call is over."""
        return False


@contextmanager
def watch(pipe: Any, units: Units, runner: Runner, backend: UnitBackend | None = None) -> Iterator[None]:
    """Attach a runner to a pipeline until the context is left."""
    transformer = pipe.transformer
    clock = clock_for(transformer)
    with (
        clock.follow(pipe.scheduler),
        attach(transformer, resolve_units(transformer, units), runner, clock, backend),
    ):
        yield
