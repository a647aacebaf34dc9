"""What can watch, replace or compute the units of a transformer, and what a unit's call can be answered with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from cachesmith.runtime.features import Feature
from cachesmith.runtime.hooks.clock import Tick
from cachesmith.runtime.models.units import Unit


@dataclass(frozen=True)
class ComputeAll:
    """The unit is computed as if nobody watched."""


@dataclass(frozen=True)
class UseOutput:
    """The unit's output is known; its members are not called."""

    output: Feature


@dataclass(frozen=True)
class ComputeTokens:
    """A tokenwise unit is called on `inputs`, some tokens of every stream; `complete` makes its whole output of what it
    returns. `fraction` is the part of the unit that is computed.
    """

    inputs: Feature
    complete: Callable[[Feature], Feature]
    fraction: float


@dataclass(frozen=True)
class ComputeRows:
    """The blocks are computed for `rows` of a batch of `total`; `complete` makes the whole batch's output."""

    rows: slice
    total: int
    complete: Callable[[Feature], Feature]


Answer = ComputeAll | UseOutput | ComputeTokens | ComputeRows
COMPUTE_ALL = ComputeAll()


class UnitResult:
    """A computed unit: its `inputs` and `outputs`, and what is cached of them."""

    def __init__(self, unit: Unit, inputs: Feature, outputs: Feature):
        self.unit, self.inputs, self.outputs = unit, inputs, outputs

    @cached_property
    def feature(self) -> Feature:
        """What is cached: the residual of blocks, the output of a module. Computed once."""
        return self.unit.feature(self.inputs, self.outputs)


@dataclass(frozen=True)
class UnitCall:
    """A unit is about to be called with `inputs`; `modulated` makes its modulated input, where that is known."""

    unit: Unit
    inputs: Feature
    modulated: Callable[[], Tensor] | None = None


class Runner(Protocol):
    """Whoever watches or replaces unit calls."""

    def begin(self, tick: Tick) -> None:
        """The transformer is called for `tick`."""

    def answer(self, call: UnitCall) -> Answer:
        """Say what of the unit is to be computed."""

    def observe(self, result: UnitResult) -> None:
        """All of the unit was computed."""

    def end(self, output: Tensor) -> bool:
        """The transformer returned `output`. True to have the same call made again."""


class UnitBackend(Protocol):
    """Computes units in the modules' place: engines."""

    def compute(self, unit: Unit, arguments: Mapping[str, Any]) -> Feature | None:
        """Return the unit's output for its first member's arguments, or None to have the modules compute it."""
