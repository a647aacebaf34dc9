"""Some of the samples on their way through a cached run: each segment walked, and what is summed over them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.axes import Segment
from cachesmith.calibrate.closed_loop.batch import Batch, Uncached
from cachesmith.calibrate.closed_loop.design import combinations
from cachesmith.calibrate.closed_loop.lanes import Rows, Schedule, corrected, line_weights
from cachesmith.calibrate.closed_loop.stack_equations import StackEquations, last_of
from cachesmith.calibrate.objective import Objective
from cachesmith.sampling.out_of_memory import half, in_memory, out_of_memory
from cachesmith.sampling.render import Renderer, device_of

_R = TypeVar("_R")


@dataclass(frozen=True)
class Start:
    """What a walk begins with. channels: of each stream; folds: how many there are; rows: the weights, by default
    lines."""

    schedule: Schedule
    channels: tuple[int, ...]
    folds: int
    rows: Rows | None = None


class Walk:
    """samples: by the place of their group; folds: of each sample, in that order [N]; numbers: likewise.

    theta [folds, lanes, AXES, channels] may be on any device. What is given or returned for each sample is in order.
    home: where what is remembered of samples rests. Where memory runs out, batches are halved.
    """

    def __init__(
        self,
        renderer: Renderer,
        samples: Mapping[int, Uncached],
        start: Start,
        folds: Tensor,
        numbers: list[int],
        home: torch.device | None = None,
    ):
        self.start, self.device = start, device_of(renderer.pipe)
        parts = torch.split(folds, [len(each) for each in samples.values()])
        self.batches = {
            place: [Batch(renderer, each, start.schedule, part, home)]
            for (place, each), part in zip(samples.items(), parts, strict=True)
        }
        self.numbers = torch.tensor(numbers)
        rows = start.rows or line_weights(start.schedule, sum(start.channels), self.device)
        self.base: Rows = {step: row.to(self.device) for step, row in rows.items()}
        self._combinations: dict[torch.Size, list[Tensor]] = {}

    def compute(self, step: int, place: int) -> int:
        """Compute a step of one group, in full or by half; return its samples."""
        self._each(lambda batch: batch.compute(step, self.base), [place])
        return sum(map(len, self.batches[place]))

    def go(self, segment: Segment, theta: Tensor) -> Tensor:
        """Walk a segment, each sample by its fold's weights: squared errors at its end [N]."""
        weights = self._weights(segment, theta)

        def walk(batch: Batch) -> Tensor:
            end, batch.last = batch.walk(segment.stop, weights)
            miss = end.float().cpu() - batch.uncached.path[:, segment.stop]
            return miss.square().flatten(1).mean(1)

        return torch.cat(self._each(walk, self.batches))

    def settle(self) -> None:
        """Go on from where the last walk of a segment ended."""
        for batch in self._all():
            batch.known, batch.last = batch.last, []

    def equations(self, segment: Segment, theta: Tensor, weights: Tensor, share: float) -> StackEquations:
        """Normal equations of a segment; each sample weighs its weight [N]. share: of the tokens."""
        while True:
            most = max(map(len, self._all()))
            with out_of_memory() as failed:
                return self._summed(segment, theta, weights, share)
            # a batch may have been added in part: all are, anew
            most = half(most, failed)
            for place, batches in self.batches.items():
                self.batches[place] = [part for batch in batches for part in batch.parts(most)]

    def _summed(self, segment: Segment, theta: Tensor, weights: Tensor, share: float) -> StackEquations:
        start, rows = self.start, self._weights(segment, theta)
        equations = StackEquations(start.folds, start.schedule, start.channels, self.device, share)
        batches = self._all()
        sizes = [len(batch) for batch in batches]
        parts = zip(batches, torch.split(weights, sizes), torch.split(self.numbers, sizes), strict=True)
        # a fold's sums come to the device once, where batches are of one fold
        for batch, weight, numbers in sorted(parts, key=lambda part: int(part[0].folds[0])):
            end, notes = batch.differentiable(segment.stop, rows)
            size = end.shape[1:]
            if size not in self._combinations:
                self._combinations[size] = combinations(end, last_of(notes))
            miss = batch.uncached.path[:, segment.stop].to(end.device).float() - end.detach().float()
            found, weight = self._combinations[size], weight.to(end.device)
            equations.add(end, miss, weight, batch.folds, notes, found, numbers.tolist())
        return equations

    def scores(self, objective: Objective) -> Tensor:
        """Of runs that were walked to their ends, a score of every sample [N]."""
        return torch.cat(self._each(lambda batch: batch.score(objective), self.batches))

    def _all(self) -> list[Batch]:
        return [batch for batches in self.batches.values() for batch in batches]

    def _each(self, work: Callable[[Batch], _R], places: Iterable[int]) -> list[_R]:
        """Do something with the batches of some groups, in memory."""
        found: list[_R] = []
        for place in [*places]:
            self.batches[place], results = in_memory(self.batches[place], work)
            found += results
        return found

    def _weights(self, segment: Segment, theta: Tensor) -> Rows:
        return corrected(self.start.schedule, segment, self.base, theta.to(self.device))
