"""When a unit is computed and when it is forecast."""

from typing import Annotated, Literal

from pydantic import Field

from cachesmith.policies.base import Count, Frozen, Mask, Name, Threshold


class Fixed(Frozen):
    """A schedule settled beforehand: `mask` has one letter a step, C computed or F forecast.

    `groups` gives a unit group (`attn`, `mlp`, `segment.3`) a schedule of its own.
    """

    kind: Literal["fixed"] = "fixed"
    mask: Mask
    groups: dict[Name, Mask] = Field(default_factory=dict)


class Interval(Frozen):
    """Compute the first `warmup` steps, then every `interval`-th, and the last `tail` steps.

    Intervals are counted from the last warm-up step, as in TaylorSeer's code; the tail does not shift them.
    """

    kind: Literal["interval"] = "interval"
    interval: int = Field(default=5, ge=1, le=1000)
    warmup: int = Field(default=1, ge=1, le=1000)
    tail: Count = 0


class Relational(Frozen):
    """RCS (arXiv 2602.19506): compute when the first unit's input stops being predictable.

    The relative L1 error of an order-`order` forecast of that input is summed since the last computed step;
    a sum above the threshold asks for a computation. `thresholds` holds one value per equal part of the
    trajectory.
    """

    kind: Literal["relational"] = "relational"
    thresholds: tuple[Threshold, ...] = Field(min_length=1, max_length=32)
    order: int = Field(default=1, ge=1, le=4)
    warmup: int = Field(default=2, ge=1, le=1000)
    max_interval: int = Field(default=50, ge=1, le=1000)
    tail: Count = 0


Gate = Annotated[Fixed | Interval | Relational, Field(discriminator="kind")]
StaticGate = Fixed | Interval
