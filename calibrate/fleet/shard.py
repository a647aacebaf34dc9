"""One worker's part of the samples, and all that is done to it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop import descent
from cachesmith.calibrate.closed_loop.axes import Segment
from cachesmith.calibrate.closed_loop.batch import Uncached
from cachesmith.calibrate.closed_loop.descent import Point
from cachesmith.calibrate.closed_loop.lanes import Schedule
from cachesmith.calibrate.closed_loop.stack_equations import StackEquations
from cachesmith.calibrate.closed_loop.walk import Start, Walk
from cachesmith.calibrate.fleet.groups import Group
from cachesmith.calibrate.memory.placement import Placement
from cachesmith.calibrate.objective import Objective
from cachesmith.calibrate.references import reference
from cachesmith.calibrate.schedules.drift import drift
from cachesmith.policies import Policy
from cachesmith.runtime import apply
from cachesmith.sampling.metrics import psnr
from cachesmith.sampling.render import Renderer

HOST = torch.device("cpu")

WHOLE = Placement()
"""As much at once as there usually is, and all of it on the device."""


class Referenced(NamedTuple):
    """Of one group: samples that had to be sampled, and steps that the sampler took."""

    sampled: int
    steps: int


class Shard:
    """Holds samples with their references, histories and latents; what it returns is small.

    groups: by their place among all groups; folder: where references lie. What is returned for each sample is in the
    order of groups, and of samples within them. where: samples called together for gradients, and what rests on the
    host.
    """

    def __init__(
        self,
        renderer: Renderer,
        groups: Mapping[int, Group],
        folder: Path,
        where: Placement = WHOLE,
    ):
        self.renderer, self.groups, self.folder, self.where = renderer, groups, folder, where
        self.samples: dict[int, Uncached] = {}
        self._parts: dict[tuple[tuple[int, ...], int], list[Uncached]] = {}
        self._at_once = where.gradient_batch

    def reference(self, place: int) -> Referenced:
        """Sample a group uncached, or find what was sampled."""
        self.samples[place], sampled = reference(self.renderer, self.groups[place], self.folder)
        return Referenced(sampled, self.samples[place].path.shape[1] - 1)

    def moves(self, scales: Tensor) -> Tensor:
        """See `Uncached.moves`."""
        return torch.cat([self.samples[place].moves(scales) for place in self.groups])

    def begin(self, start: Start, folds: Tensor) -> None:
        """Begin a walk; folds: of the samples [N]."""
        numbers = [number for group in self.groups.values() for number in group.numbers]
        samples = {place: self.samples[place] for place in self.groups}
        home = None if self.where.history else HOST
        self._walk = Walk(self.renderer, samples, start, folds, numbers, home)

    def compute(self, step: int, place: int) -> int:
        """See `Walk`."""
        return self._walk.compute(step, place)

    def go(self, segment: Segment, theta: Tensor) -> Tensor:
        """See `Walk`."""
        return self._walk.go(segment, theta)

    def settle(self) -> None:
        """See `Walk`."""
        self._walk.settle()

    def equations(self, segment: Segment, theta: Tensor, weights: Tensor, share: float) -> None:
        """See `Walk`; `sums` returns them."""
        self._equations: StackEquations | None = self._walk.equations(segment, theta, weights, share)

    def sums(self) -> StackEquations | None:
        """The last equations, which are then forgotten: they are large."""
        equations, self._equations = self._equations, None
        return equations

    def scores(self, objective: Objective) -> Tensor:
        """See `Walk`."""
        return self._walk.scores(objective)

    def gradients(self, numbers: Sequence[int], point: Point) -> tuple[list[Tensor], Tensor]:
        """See `descent.gradients`, of the samples with these numbers that are here."""
        some = self._some(numbers)
        grads, ends, called = descent.gradients(self.renderer, some, point, self.where.graph_on_host)
        self._at_once = max(map(len, called)) if len(called) > len(some) else self._at_once
        return grads, ends

    def drift(self, numbers: Sequence[int], schedule: Schedule, channels: tuple[int, ...]) -> Tensor:
        """See `schedules.drift`, of the samples with these numbers that are here."""
        return drift(self.renderer, self._some(numbers), schedule, channels)

    def quality(self, policy: Policy) -> tuple[Tensor, float]:
        """Closed-loop PSNR in dB of all samples [N], and full computations."""
        found = []
        with apply(self.renderer.pipe, policy) as session:
            for batch in self.samples.values():
                found.append(psnr(batch.images, self.renderer(batch.requests).images))
        return torch.cat(found), session.stats.nfc

    def _some(self, numbers: Sequence[int]) -> list[Uncached]:
        """The samples with these numbers that are here, as many at once as fit."""
        wanted = {
            place: tuple(n for n in group.numbers if n in numbers) for place, group in self.groups.items()
        }
        return [part for place, own in wanted.items() if own for part in self._part(place, own)]

    def _part(self, place: int, numbers: tuple[int, ...]) -> list[Uncached]:
        """Some of a group's samples, as many at once as fit; always the same objects: they remember their prompts."""
        group, whole, most = self.groups[place], self.samples[place], self._at_once
        if numbers == group.numbers and len(numbers) <= most:
            return [whole]
        if (numbers, most) not in self._parts:
            some = whole.some([group.numbers.index(number) for number in numbers])
            self._parts[numbers, most] = some.parts(most)
        return self._parts[numbers, most]
