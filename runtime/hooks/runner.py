"""What can watch, replace or compute the units of a transformer."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from cachesmith.runtime.forecast.history import Feature
from cachesmith.runtime.forecast.token_refresh import Partial
from cachesmith.runtime.hooks.clock import Tick
from cachesmith.runtime.models.units import Unit


@runtime_checkable
class Runner(Protocol):
    """Whoever watches or replaces unit calls: `Session`, `Recorder`."""

    def begin(self, tick: Tick) -> None:
        """The transformer is called for `tick`."""

    def forecast(self, unit: Unit, inputs: Feature) -> Feature | Partial | None:
        """Return the unit's output without computing it, some tokens of it to compute, or None to have it computed."""

    def observe(self, unit: Unit, inputs: Feature, outputs: Feature) -> None:
        """The unit was computed."""


@runtime_checkable
class Foreseeing(Runner, Protocol):
    """A runner that knows what it will compute before it is asked to forecast it."""

    def computes(self, unit: Unit, inputs: Feature) -> bool:
        """Whether `unit` is to be computed now, for inputs of this shape."""


@runtime_checkable
class Onlooker(Protocol):
    """A runner that may want to see the modulated input of a run of blocks, although it is forecast."""

    def offer(self, unit: Unit, modulated: Callable[[], Tensor]) -> None:
        """`forecast` is about to be called for `unit`; until then, `modulated()` makes its modulated input."""


@runtime_checkable
class Computer(Protocol):
    """Computes units in the modules' place: `BoundEngines`."""

    def compute(self, unit: Unit, arguments: Mapping[str, Any]) -> Feature | None:
        """Return the unit's output for its first member's arguments, or None to have the modules compute it."""
