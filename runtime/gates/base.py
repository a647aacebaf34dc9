"""What gates that decide while sampling have in common."""

from collections.abc import Callable
from math import isfinite
from typing import NamedTuple, Protocol

from torch import Tensor

from cachesmith.policies import DynamicGate
from cachesmith.runtime.forecast.history import Feature, History
from cachesmith.runtime.plan.plan import Plan
from cachesmith.runtime.stats import NON_FINITE


class Verdict(NamedTuple):
    """Compute every unit of this call? `demand` is what was measured, `why` what went wrong, if anything."""

    compute: bool
    demand: float | None = None
    why: str | None = None


class Entered(NamedTuple):
    """The first unit is called at `step` with `inputs`; `modulated` makes its modulated input when asked."""

    step: int
    inputs: Feature
    modulated: Callable[[], Tensor]


class Computed(NamedTuple):
    """The unit a gate looks at was computed; `outputs` are residuals for runs of blocks.

    `history` is as it was before this step. `forecast` gives the unit's own forecast of `outputs`, if there is one.
    """

    step: int
    inputs: Feature
    outputs: Feature
    history: History
    forecast: Callable[[], Feature | None]


class GateState(Protocol):
    """A gate on one guidance branch of one run."""

    def enter(self, call: Entered) -> Verdict | None:
        """Decide for this call, or return None to have `leave` decide once the first unit is computed."""

    def leave(self, call: Computed) -> Verdict | None:
        """The plan's gauge was computed: remember it, and decide for this call if `enter` did not."""

    def tensors(self) -> list[Tensor]:
        """Every whole feature that is held."""


def required(plan: Plan, gate: DynamicGate, last: int | None, step: int, start: int) -> bool:
    """Whether a rule that reads no tensor asks for a computation: nothing yet, warm-up, tail, longest interval.

    start: the step at which this run began.
    """
    return (
        last is None
        or step - start < gate.warmup
        or step >= plan.steps - gate.tail
        or step - last >= gate.max_interval
    )


def judged(demand: float, compute: bool) -> Verdict:
    """Return a verdict that rests on a measurement; one that is not finite asks for a computation."""
    return Verdict(compute, demand) if isfinite(demand) else Verdict(True, demand, NON_FINITE)
