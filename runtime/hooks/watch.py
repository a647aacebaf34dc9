"""Watch the units of a pipeline outside of any policy: the clock is followed, a runner attached."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import Tensor

from cachesmith.policies import Units
from cachesmith.runtime.hooks.attach import attach
from cachesmith.runtime.hooks.clock import Clock, Tick
from cachesmith.runtime.hooks.runner import COMPUTE_ALL, Answer, Runner, UnitBackend, UnitCall, UnitResult
from cachesmith.runtime.models.denoisers import denoisers
from cachesmith.runtime.models.units import Unit, resolve_units, units_of


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


RunnerOf = Callable[[str, tuple[Unit, ...]], Runner]
"""Makes the runner of a denoiser, from its name and units."""


def watch(
    pipe: Any, units: Units, runner: Runner, backend: UnitBackend | None = None
) -> AbstractContextManager[None]:
    """Attach a runner to a pipeline, all its denoisers, until the context is left."""
    return watch_each(pipe, units, lambda *_: runner, backend)


@contextmanager
def watch_each(
    pipe: Any, units: Units, runner_of: RunnerOf, backend: UnitBackend | None = None
) -> Iterator[None]:
    """As `watch`, with a runner for every denoiser; all follow one clock."""
    named = denoisers(pipe)
    with ExitStack() as stack:
        clock = stack.enter_context(Clock().follow(pipe.scheduler))
        for name, transformer in named.items():
            own = units_of(resolve_units(transformer, units), name)
            stack.enter_context(attach(transformer, own, runner_of(name, own), clock, backend))
        yield
