"""How many bytes a run will hold, to the byte, before it is sampled."""

from collections.abc import Iterator, Mapping
from math import prod

from cachesmith.policies import Scored
from cachesmith.runtime.models.units import BlockRun, Unit, guidance_difference
from cachesmith.runtime.plan.constants import constant_bytes
from cachesmith.runtime.plan.plan import Compute, Forecast, Plan

_Shapes = Mapping[str, tuple[int, ...]]
"""Of every stream, the batch included."""


def cache_bytes(plan: Plan, shapes: _Shapes, itemsize: int, branches: int = 1, start: int = 0) -> int:
    """The largest number of bytes held at a time: histories, the gate's state and the policy's arrays on the device.

    A module's stream that the blocks do not name (`input` of FLUX's single blocks) is all streams joined. What a
    dynamic gate lets accumulate is counted in full.
    """
    sizes = _Sizes(plan, shapes, itemsize)
    constants = constant_bytes(plan)
    if plan.gate is not None:
        held = sum(sizes.full(unit) for unit in plan.units) + sizes.gate()
        return held * branches + constants
    return max(_static(plan, sizes, branches, start), default=0) + constants


def _static(plan: Plan, sizes: "_Sizes", branches: int, start: int) -> Iterator[int]:
    """Bytes held after every unit's call of a run."""
    schedules = {unit.name: plan.schedule(unit, start) for unit in plan.units}
    held = {(branch, unit.name): _Held() for branch in range(branches) for unit in plan.units}
    total = leading = 0
    for step in range(start, plan.steps):
        for branch in range(branches):
            for unit in plan.units:
                state = held[branch, unit.name]
                before = state.bytes(plan, unit, sizes)
                state.move(plan, unit, schedules[unit.name][step])
                total += state.bytes(plan, unit, sizes) - before
                if isinstance(unit, BlockRun):
                    leading = _leading(plan, unit, schedules[unit.name][step], sizes)
                yield total + leading


def _leading(plan: Plan, unit: Unit, decision: Compute | Forecast, sizes: "_Sizes") -> int:
    """What a call added that later calls of the step follow is held for them, unless it is in the history as well."""
    guidance = guidance_difference(plan.units)
    remembered = isinstance(decision, Compute) and decision.keep
    return 0 if guidance is None or guidance.follower != "later" or remembered else sizes.feature(unit)


class _Held:
    """What a history holds: how many outputs, whether a scale was measured and tokens are told apart."""

    def __init__(self) -> None:
        self.outputs, self.scale, self.tokens = 0, False, False

    def move(self, plan: Plan, unit: Unit, decision: Compute | Forecast) -> None:
        """The unit was called."""
        match decision:
            case Compute(keep=True):
                self.scale = self.outputs > 0 and plan.observes_scale(unit)
                self.outputs, self.tokens = min(self.outputs + 1, plan.taps(unit)), False
            case Forecast():
                self.tokens = True

    def bytes(self, plan: Plan, unit: Unit, sizes: "_Sizes") -> int:
        """Their size."""
        features = self.outputs + min(self.outputs, plan.input_taps(unit))
        tokens = sizes.tokens(unit) if self.tokens else 0
        return features * sizes.feature(unit) + self.scale * sizes.scale(unit) + tokens


class _Sizes:
    """Bytes of a unit's parts for streams of the given shapes."""

    def __init__(self, plan: Plan, shapes: _Shapes, itemsize: int):
        self.plan, self.shapes, self.itemsize = plan, shapes, itemsize
        self.streams = {name: prod(shape) * itemsize for name, shape in shapes.items()}
        self.joined = sum(self.streams.values())
        self.samples = next(iter(shapes.values()))[0]

    def stream(self, name: str) -> int:
        """One stream's feature."""
        return self.streams.get(name, self.joined)

    def feature(self, unit: Unit) -> int:
        """A whole feature of `unit`."""
        return sum(self.stream(name) for name in unit.streams)

    def scale(self, unit: Unit) -> int:
        """RFE's scale: one number a sample and stream, in the dtype of sums."""
        return len(unit.streams) * self.samples * max(4, self.itemsize)

    def full(self, unit: Unit) -> int:
        """Everything held for `unit` once all its taps are filled."""
        features = self.plan.taps(unit) + self.plan.input_taps(unit)
        scale = self.scale(unit) if self.plan.observes_scale(unit) else 0
        return features * self.feature(unit) + scale + self.tokens(unit)

    def gate(self) -> int:
        """The state of a dynamic gate."""
        if self.plan.gate is None:
            return 0
        unit = self.plan.gate.unit
        sizes = {name: self.stream(name) for name in unit.streams}
        return self.plan.gate.held_bytes(sizes, self.samples, self.plan.input_taps(unit))

    def tokens(self, unit: Unit) -> int:
        """Size of `TokenState`: a mark of two bytes a token, and one or two tensors of the unit's shape."""
        rule = self.plan.refresh(unit)
        if rule is None:
            return 0
        own = [self.shapes[s] for s in unit.streams if s in self.shapes] or list(self.shapes.values())
        samples, length, channels = own[0][0], sum(shape[1] for shape in own), own[0][2]
        if not self.plan.refreshed(unit, length):
            return 0
        kept = 2 if isinstance(rule, Scored) and rule.importance == "moved" else 1
        return samples * length * (2 + kept * channels * self.itemsize)
