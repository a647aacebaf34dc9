"""A transformer's timestep argument against the scheduler's list, whatever form the family gives it.

Families hand over t, t / 1000, 1 - t / 1000, sigma or sigma / (1 + sigma), for the sample or for every token. Which one
it is shows at a run's first call; from then on only that form is looked at.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_TOLERANCE = 1e-6
"""Of a timestep in float32, relative to the largest one."""

_DISTINCT = 8
"""Timesteps that a call gives its tokens; of more, the least and the largest are looked at."""


class Value:
    """A timestep argument, read: its distinct values, and how far rounding may have moved them."""

    def __init__(self, timestep: Tensor | float):
        values = torch.as_tensor(timestep)
        self.rounding = torch.finfo(values.dtype).eps if values.is_floating_point() else 0.0
        distinct = sorted(set(values.detach().double().flatten().tolist()))
        self.values: list[float] = distinct if len(distinct) <= _DISTINCT else [distinct[0], distinct[-1]]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Value) and self.values == other.values

    __hash__ = None  # type: ignore[assignment]

    def near(self, expected: float, span: float) -> bool:
        """Whether it holds `expected`, one of a list whose largest value is `span`."""
        return any(abs(v - expected) <= self.slack(v, span) for v in self.values)

    def slack(self, value: float, span: float) -> float:
        """How far `value` may be from one of a list whose largest value is `span`."""
        return max(_TOLERANCE * span, self.rounding * abs(value))


class Form:
    """The scheduler's timesteps in the form that one family of transformers is given them."""

    def __init__(self, steps: Sequence[float]):
        self.steps = steps
        self.span = max((abs(step) for step in steps), default=1.0)

    def holds(self, index: int, value: Value) -> bool:
        """Whether `value` is the timestep of step `index`."""
        return 0 <= index < len(self.steps) and value.near(self.steps[index], self.span)

    def starts(self, index: int, value: Value) -> bool:
        """Whether step `index`'s timestep is the noisiest token's.

        Pipelines that hold some tokens clean give those the timestep of a picture without noise.
        """
        if index >= len(self.steps):
            return False
        noisiest = self._noisiest(value)
        return abs(noisiest - self.steps[index]) <= value.slack(noisiest, self.span)

    def find(self, value: Value) -> int | None:
        """The step whose timestep the noisiest token's is closest to, if it is one of the list's."""
        distances = [abs(self._noisiest(value) - step) for step in self.steps]
        nearest = distances.index(min(distances)) if distances else 0
        if not self.starts(nearest, value):
            return None
        # second-order schedulers list a timestep twice; entering in the middle means the second, as in diffusers
        twice = 0 < nearest < len(self.steps) - 1 and self.steps[nearest + 1] == self.steps[nearest]
        return nearest + 1 if twice else nearest

    def _noisiest(self, value: Value) -> float:
        return value.values[-1 if self.steps[0] >= self.steps[-1] else 0]


def forms(scheduler: Any, timesteps: Sequence[float]) -> list[Form]:
    """All forms of a scheduler's timesteps; those of its own list first."""
    train = float(getattr(scheduler, "config", {}).get("num_train_timesteps", 1000))
    sigmas = getattr(scheduler, "sigmas", None)
    made: list[Sequence[float]] = [
        timesteps,
        [t / train for t in timesteps],
        [1 - t / train for t in timesteps],
    ]
    if sigmas is not None and len(sigmas) >= len(timesteps):
        levels = torch.as_tensor(sigmas)[: len(timesteps)].double().tolist()
        by_level: list[Callable[[float], float]] = [
            lambda sigma: sigma,
            lambda sigma: sigma / (1 + sigma),
            lambda sigma: 0.25 * math.log(max(sigma, 1e-12)),
        ]
        made += [[change(level) for level in levels] for change in by_level]
    return [Form(steps) for steps in made]


def place_in(timesteps: Any, timestep: Any, host: Sequence[float]) -> int | None:
    """The index of what `scheduler.step` was given: by its place in memory, or on the host by value."""
    if isinstance(timestep, Tensor) and isinstance(timesteps, Tensor) and _part_of(timestep, timesteps):
        return (timestep.data_ptr() - timesteps.data_ptr()) // timesteps.element_size()
    if isinstance(timestep, Tensor) and (timestep.device.type != "cpu" or timestep.numel() != 1):
        return None
    value = float(timestep) if isinstance(timestep, Tensor | int | float) else math.nan
    return host.index(value) if host.count(value) == 1 else None


def _part_of(a: Tensor, b: Tensor) -> bool:
    if a.numel() != 1 or a.dtype != b.dtype or a.device != b.device or b.device.type == "meta":
        return False
    shared = a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    return shared and 0 <= a.data_ptr() - b.data_ptr() < b.nbytes
