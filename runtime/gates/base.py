"""What gates that decide while sampling have in common."""

from collections.abc import Callable, Mapping
from math import isfinite
from typing import NamedTuple, Protocol

from torch import Tensor

from cachesmith.policies import DynamicGate
from cachesmith.runtime.features import Feature
from cachesmith.runtime.models.units import Unit
from cachesmith.runtime.stats import NON_FINITE


class GateDecision(NamedTuple):
    """Compute every unit of this call? `measured` is what that rests on, `why` what went wrong, if anything."""

    compute: bool
    measured: float | None = None
    why: str | None = None


COMPUTE_CALL = GateDecision(True)


class UnitEntered(NamedTuple):
    """The first unit is called at `step` with `inputs`; `modulated` makes its modulated input when asked."""

    step: int
    inputs: Feature
    modulated: Callable[[], Tensor]


class ProbeComputed(NamedTuple):
    """The unit a gate looks at was computed; `feature` is what is cached of it.

    `last` gives its feature at the newest remembered step, `forecast` its own forecast; None where there is none.
    `changed`: something is remembered, but of another shape.
    """

    step: int
    inputs: Feature
    feature: Feature
    last: Callable[[], Feature | None]
    forecast: Callable[[], Feature | None]
    changed: bool = False


class GateState(Protocol):
    """A gate on one guidance branch of one run."""

    def enter(self, call: UnitEntered) -> GateDecision | None:
        """Decide for this call, or return None to have `leave` decide once the first unit is computed."""

    def leave(self, call: ProbeComputed) -> GateDecision | None:
        """The gate's unit was computed: remember it, and decide for this call if `enter` did not."""

    def tensors(self) -> list[Tensor]:
        """Everything that is held."""


class GateRules(Protocol):
    """A gate that decides while sampling, on one model: the unit it looks at, and what it needs.

    `probes`: that unit is computed at every step, and remembered only where all units are; `compares`: it is held
    against its own last feature, and never forecast.
    """

    unit: Unit
    probes: bool
    compares: bool

    def check(self, units: tuple[Unit, ...]) -> None:
        """Raise `PolicyError` where the units do not serve the gate."""

    def held_bytes(self, sizes: Mapping[str, int], samples: int, shared_inputs: int) -> int:
        """Bytes held on one branch once a step was forecast.

        sizes: bytes of each of the unit's streams; samples: rows of the batch; shared_inputs: how many of the unit's
        past inputs its forecaster holds anyway.
        """

    def state(self, times: tuple[float, ...], start: int) -> GateState:
        """A branch that begins at step `start` of a run over `times`."""


def required(gate: DynamicGate, steps: int, last: int | None, step: int, start: int) -> bool:
    """Whether a rule that reads no tensor asks for a computation: nothing yet, warm-up, tail, longest interval.

    steps: of the sampler; last: the newest computed one; start: the one at which this run began.
    """
    return (
        last is None
        or step - start < gate.warmup
        or step >= steps - gate.tail
        or step - last >= gate.max_interval
    )


def by_measurement(measured: float, compute: bool) -> GateDecision:
    """A decision that rests on a measurement; one that is not finite asks for a computation."""
    if isfinite(measured):
        return GateDecision(compute, measured)
    return GateDecision(True, measured, NON_FINITE)


def time_bin(step: int, steps: int, bins: int) -> int:
    """The bin of `step` when a run of `steps` is cut into `bins` equal parts."""
    return min(step * bins // steps, bins - 1)
