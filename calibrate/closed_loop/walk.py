"""Some of the samples on their way through a cached run: each segment walked, and what is summed over them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.axes import Segment
from cachesmith.calibrate.closed_loop.batch import Batch, Uncached
from cachesmith.calibrate.closed_loop.combinations import combinations
from cachesmith.calibrate.closed_loop.equations import Equations
from cachesmith.calibrate.closed_loop.lanes import Rows, Schedule, corrected, line_weights
from cachesmith.calibrate.closed_loop.replay import Results
from cachesmith.sampling.metrics import psnr
from cachesmith.sampling.render import Renderer, device_of


@dataclass(frozen=True)
class Start:
    """What a walk begins with. folds: how many there are; rows: the weights, by default lines."""

    schedule: Schedule
    channels: int
    folds: int
    rows: Rows | None = None


class Walk:
    """samples: by the place of their group; folds: of each sample, in that order [N]; numbers: likewise.

    theta [folds, lanes, AXES, channels] may be on any device. What is given or returned for each sample is in order.
    """

    def __init__(
        self,
        renderer: Renderer,
        samples: Mapping[int, Uncached],
        start: Start,
        folds: Tensor,
        numbers: list[int],
    ):
        self.start, self.device = start, device_of(renderer.pipe)
        self.sizes = [len(each.requests) for each in samples.values()]
        parts = torch.split(folds, self.sizes)
        self.batches = {
            place: Batch(renderer, each, start.schedule, part)
            for (place, each), part in zip(samples.items(), parts, strict=True)
        }
        self.numbers = torch.split(torch.tensor(numbers), self.sizes)
        rows = line_weights(start.schedule, start.channels, self.device) if start.rows is None else start.rows
        self.base: Rows = {step: row.to(self.device) for step, row in rows.items()}
        self._last: list[Results] = []
        self._kept: list[Results] = []
        self._combinations: dict[torch.Size, list[Tensor]] = {}

    def compute(self, step: int, place: int) -> int:
        """Compute a step of one group, in full or by half; return its samples."""
        self.batches[place].compute(step, self.base)
        return len(self.batches[place].folds)

    def go(self, segment: Segment, theta: Tensor) -> Tensor:
        """Walk a segment, each sample by its fold's weights: squared errors at its end [N]."""
        weights, squares = self._weights(segment, theta), list[Tensor]()
        self._last = []
        for batch in self.batches.values():
            end, known = batch.walk(segment.stop, weights)
            miss = end.float().cpu() - batch.uncached.path[:, segment.stop]
            squares.append(miss.square().flatten(1).mean(1))
            self._last.append(known)
        return torch.cat(squares)

    def keep(self) -> None:
        """Of all walks of a segment, the last is the one to settle for."""
        self._kept = self._last

    def settle(self) -> None:
        """Go on from where the walk that was kept ended."""
        for batch, known in zip(self.batches.values(), self._kept, strict=True):
            batch.known = known
        self._last = self._kept = []

    def equations(self, segment: Segment, theta: Tensor, weights: Tensor, share: float) -> Equations:
        """Normal equations of a segment; each sample weighs its weight [N]. share: of the tokens."""
        start, rows = self.start, self._weights(segment, theta)
        equations = Equations(start.folds, start.schedule, start.channels, self.device, share)
        parts = zip(self.batches.values(), torch.split(weights, self.sizes), self.numbers, strict=True)
        for batch, weight, numbers in parts:
            end, notes = batch.differentiable(segment.stop, rows)
            size = end.shape[1:]
            if size not in self._combinations:
                self._combinations[size] = combinations(end, notes[-1].output)
            miss = batch.uncached.path[:, segment.stop].to(end) - end.detach()
            found = self._combinations[size]
            equations.add(end, miss, weight.to(end), batch.folds, notes, found, numbers.tolist())
        return equations

    def scores(self) -> Tensor:
        """PSNR in dB of every sample [N], of runs that were walked to their ends."""
        return torch.cat([psnr(batch.uncached.images, batch.pictures()) for batch in self.batches.values()])

    def _weights(self, segment: Segment, theta: Tensor) -> Rows:
        return corrected(self.start.schedule, segment, self.base, theta.to(self.device))
