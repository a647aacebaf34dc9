"""When a unit is computed and when it is forecast."""

from typing import Annotated, Literal

from pydantic import Field

from cachesmith.policies.base import MAX_GROUPS, Count, Frozen, HalfMask, Mask, Name, Threshold

_Steps = Annotated[int, Field(ge=1, le=1000)]
Coefficient = Annotated[float, Field(ge=-1e12, le=1e12)]


class Fixed(Frozen):
    """A schedule settled beforehand: `mask` has one letter a step, C computed or F forecast.

    Where one half of guidance follows the other (`Stack.follower`), a step may be H: only the other half is computed.

    `groups` gives a unit group (`attn`, `mlp`, `segment.3`) a schedule of its own.
    """

    kind: Literal["fixed"] = "fixed"
    mask: HalfMask
    groups: dict[Name, Mask] = Field(default_factory=dict, max_length=MAX_GROUPS)


class Interval(Frozen):
    """Compute the first `warmup` steps, then every `interval`-th, and the last `tail` steps.

    Intervals are counted from the last warm-up step, as in TaylorSeer's code; the tail does not shift them.
    """

    kind: Literal["interval"] = "interval"
    interval: _Steps = 5
    warmup: _Steps = 1
    tail: Count = 0


class Dynamic(Frozen):
    """What all gates that decide while sampling share.

    The first `warmup` and the last `tail` steps are computed, and so is a step `max_interval` after the last computed
    one. A batch follows its most demanding sample. Guidance branches that are sampled one after the other decide each
    for itself; in one batch they decide together.
    """

    warmup: _Steps = 1
    tail: Count = 0
    max_interval: _Steps = 1000


class Relational(Dynamic):
    """RCS (arXiv 2602.19506): compute when the first unit's input stops being predictable.

    The relative L1 error of an order-`order` forecast of that input is summed since the last computed step;
    a sum above the threshold asks for a computation. `thresholds` holds one value per equal part of the
    trajectory.
    """

    kind: Literal["relational"] = "relational"
    thresholds: tuple[Threshold, ...] = Field(min_length=1, max_length=32)
    order: int = Field(default=1, ge=1, le=4)
    warmup: _Steps = 2
    max_interval: _Steps = 50


class Distance(Dynamic):
    """Compute when the change from step to step has added up to `threshold` since the last computed step.

    The change is that of the image stream, |x_t - x_(t-1)| / |x_(t-1)| (L1): of what enters the first unit (`input`),
    or of the same after the first block's adaptive norm (`modulated`: TeaCache, arXiv 2411.19108). `polynomial`,
    highest power first, turns it into the change of the output; (1, 0) leaves it as it is.

    per="output" is EasyCache (arXiv 2507.02860): the change is K |x_t - x_(t-1)| / |y|, where y is the first unit's
    output at the last computed step, and K = |y - y'| / |x - x'| between the last two of them.
    """

    kind: Literal["distance"] = "distance"
    signal: Literal["modulated", "input"] = "modulated"
    per: Literal["signal", "output"] = "signal"
    polynomial: tuple[Coefficient, ...] = Field(default=(1.0, 0.0), min_length=1, max_length=9)
    threshold: Threshold
    tail: Count = 1


class Probe(Dynamic):
    """Compute one unit at every step, and judge by it whether the others may be forecast.

    place="first": the first unit is the probe, and decides for the others at the same step (FirstBlockCache, DBCache;
    confidence-gated Taylor, arXiv 2508.02240). place="last": the last unit is computed on what the others' forecasts
    lead to, and decides for the next step (SpeCa, arXiv 2509.11628).

    The error is the relative distance (`norm`) of the probe's output on the image stream from the one at the last
    computed step (against="last") or from its own forecast. An error of at least
    max(threshold * decay ** (step / steps), floor) asks for a computation, but not before `min_interval` steps after
    the last one. Right after a computation the error of a last probe counts as 0.
    """

    kind: Literal["probe"] = "probe"
    place: Literal["first", "last"] = "first"
    against: Literal["last", "forecast"] = "last"
    norm: Literal["l1", "l2"] = "l1"
    threshold: Threshold
    decay: float = Field(default=1.0, gt=0, le=1)
    floor: Threshold = 0.0
    min_interval: _Steps = 1


Gate = Annotated[Fixed | Interval | Relational | Distance | Probe, Field(discriminator="kind")]
StaticGate = Fixed | Interval
DynamicGate = Relational | Distance | Probe
