"""Closed-loop least squares, segment by segment.

All samples walk the cached run together. What a segment does to the rest of a run is where its last latents end, and
they are to be the sample's own uncached ones. So each segment's weights are one small regression (Gauss-Newton, since
the tail after the blocks is not linear), and the only forwards of the network are those of the computed steps. Samples
are in folds, and each walks on by weights that were solved without its fold: drift that is fitted is drift as it will
be, and where the samples end is an honest score.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.axes import AXES, Segment, segments
from cachesmith.calibrate.closed_loop.batch import Batch, Uncached
from cachesmith.calibrate.closed_loop.combinations import combinations
from cachesmith.calibrate.closed_loop.equations import Equations, factored, solve
from cachesmith.calibrate.closed_loop.lanes import Rows, Schedule, corrected, lines
from cachesmith.calibrate.closed_loop.replay import Results
from cachesmith.sampling.metrics import psnr
from cachesmith.sampling.render import Renderer, device_of

FOLDS = 4

CAUTIOUS = (10.0, 1.0, 0.1)
"""Ridges of the first turn: weights that go far before they are linearised again go wrong."""

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges of later turns; of each turn, the one that ends closest out of fold is kept."""

FEW = 1 / 3
"""Part of the tokens that the first turn looks at."""

TURNS = 3

WORTH = 0.97
"""One more turn is taken where the last one brought the error below this much of what it was."""

DAMPING = 1e-2
"""Ridge of the curvatures that gradients go by."""

WEIGHT = 0.5
"""A sample weighs (squared error) ** -WEIGHT: quality is a mean of logarithms, each sample counts by its own scale."""

FLOOR = 0.01
"""Of the median squared error, added to every sample's."""


@dataclass(frozen=True)
class Curvature:
    """Of one segment: the Cholesky factor of its equations and ridge, a mean over samples and tokens.

    squares: squared errors at its end, out of fold [N]; before, after: their geometric mean's root without and with
    weights.
    """

    segment: Segment
    factor: Tensor
    ridge: float
    before: float
    after: float
    squares: Tensor


@dataclass
class Fit:
    """Weights from all samples; curvatures; width: latents of a token; samples: out-of-fold PSNR [N] in dB."""

    schedule: Schedule
    rows: Rows = field(default_factory=dict)
    curvatures: list[Curvature] = field(default_factory=list)
    width: int = 1
    samples: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def psnr(self) -> float:
        """Mean of the samples, dB."""
        return float(self.samples.mean())

    def saved(self) -> dict[str, Any]:
        """As tensors, numbers and strings."""
        curvatures = [
            (*each.segment, each.factor, each.ridge, each.before, each.after, each.squares)
            for each in self.curvatures
        ]
        return {
            "schedule": tuple(self.schedule), "rows": self.rows, "curvatures": curvatures, "width": self.width,
            "samples": self.samples,
        }  # fmt: skip

    @staticmethod
    def load(saved: dict[str, Any]) -> "Fit":
        """What `saved` was made of."""
        curvatures = [Curvature(Segment(*each[:2]), *each[2:]) for each in saved["curvatures"]]
        return Fit(Schedule(*saved["schedule"]), saved["rows"], curvatures, saved["width"], saved["samples"])


class Walked(NamedTuple):
    """A segment walked by all batches: where it ends (geometric mean error), squared errors [N], and the results."""

    error: float
    squares: Tensor
    results: list[Results]


class SegmentFitter:
    """Fits one schedule on batches of uncached samples.

    ridges, turns, share of the tokens: less of them for a quick fit. start: weights to begin with, by default lines;
    they are kept if `hold`, and only their curvature is found.
    advance(samples) is called for every computed step.
    """

    def __init__(
        self,
        renderer: Renderer,
        samples: Sequence[Uncached],
        schedule: Schedule,
        channels: int,
        *,
        ridges: Sequence[float] = RIDGES,
        turns: int = TURNS,
        share: float = 1.0,
        start: Rows | None = None,
        hold: bool = False,
        advance: Callable[[float], None] | None = None,
    ):
        self.schedule, self.channels, self.ridges, self.hold = schedule, channels, ridges, hold
        self.turns, self.share = turns, share
        self.device = device_of(renderer.pipe)
        count = sum(len(each.requests) for each in samples)
        self.folds = min(FOLDS, count)
        assigned = torch.split(torch.arange(count) % self.folds, [len(each.requests) for each in samples])
        self.batches = [
            Batch(renderer, each, schedule, folds) for each, folds in zip(samples, assigned, strict=True)
        ]
        self.base = start or lines(schedule, channels, self.device)
        self.advance = advance or (lambda _: None)
        self.segments = segments(schedule.mask)
        self._fit = Fit(schedule)
        self._combinations: dict[torch.Size, list[Tensor]] = {}
        self._places: dict[tuple[float, ...], int] = {}

    def __call__(self) -> Fit:
        """Walk all segments; the runs' pictures, out of fold, are the score."""
        for segment in self.segments:
            self._segment(segment)
        self._fit.samples = torch.cat([psnr(b.uncached.images, b.pictures()) for b in self.batches])
        return self._fit

    def _segment(self, segment: Segment) -> None:
        shape = (self.folds, len(self.schedule.lanes), AXES, self.channels)
        theta = torch.zeros(shape, device=self.device)
        for batch in self.batches:
            batch.compute(segment.start, self._weights(segment, theta))
            self.advance(len(batch.folds) * (1.0 if self.schedule.mask[segment.start] == "C" else 0.5))
        if not any(step in self.base for step in range(*segment)):
            return
        before = best = self._walked(segment, theta)
        together, ridge = theta[0], 0.0
        for turn in range(self.turns):
            share = self.share if turn or self.hold else FEW
            equations = self._equations(segment, theta, best.squares, share)
            curvature = equations.gram.sum(0).add_(equations.ridge(DAMPING))
            if self.hold:
                break
            grid = self.ridges if turn else CAUTIOUS
            factor, found, walked = self._turn(segment, equations, theta, grid)
            if walked.error >= best.error:
                break
            matrix = equations.gram.sum(0).add_(equations.ridge(factor))
            together = solve(matrix, equations.target(theta).sum(0)).view_as(theta[0])
            before_turn, best, theta, ridge = best.error, walked, found, factor
            if turn and best.error > WORTH * before_turn:
                break
        self._settle(segment, together, best.results)
        lower = factored(curvature / equations.count)
        self._fit.curvatures.append(Curvature(segment, lower, ridge, before.error, best.error, best.squares))

    def _turn(
        self, segment: Segment, equations: Equations, theta: Tensor, grid: Sequence[float]
    ) -> tuple[float, Tensor, Walked]:
        """The ridge of the grid whose out-of-fold weights end closest, these weights, and where they end.

        It is looked for from the one that the last segment took, up or down as long as that comes closer.
        """
        turns: dict[int, tuple[float, Tensor, Walked]] = {}

        def error(place: int) -> float:
            if place not in range(len(grid)):
                return torch.inf
            if place not in turns:
                found = equations.without(theta, grid[place])
                turns[place] = grid[place], found, self._walked(segment, found)
            return turns[place][2].error

        best = self._places.get(tuple(grid), len(grid) // 2)
        way = 1 if error(best + 1) < error(best) else -1
        while error(best + way) < error(best):
            best += way
        self._places[tuple(grid)] = best
        return turns[best]

    def _settle(self, segment: Segment, theta: Tensor, results: list[Results]) -> None:
        for batch, each in zip(self.batches, results, strict=True):
            batch.known = each
        self._fit.rows |= self._weights(segment, theta)

    def _weights(self, segment: Segment, theta: Tensor) -> Rows:
        return corrected(self.schedule, segment, self.base, theta)

    def _walked(self, segment: Segment, theta: Tensor) -> Walked:
        weights = self._weights(segment, theta)
        squares, results = [], []
        for batch in self.batches:
            end, known = batch.walk(segment.stop, weights)
            miss = end.float().cpu() - batch.uncached.path[:, segment.stop]
            squares.append(miss.square().flatten(1).mean(1))
            results.append(known)
        each = torch.cat(squares).nan_to_num(torch.inf, torch.inf).clamp_min(1e-20)
        return Walked(float((0.5 * each.log().mean()).exp()), each, results)

    def _equations(self, segment: Segment, theta: Tensor, squares: Tensor, share: float) -> Equations:
        weights = self._weights(segment, theta)
        equations = Equations(self.folds, self.schedule, self.channels, self.device, share)
        importance = (squares + FLOOR * squares.median()) ** -WEIGHT
        sizes = [len(batch.folds) for batch in self.batches]
        for batch, weight in zip(
            self.batches, torch.split(importance / importance.mean(), sizes), strict=True
        ):
            end, notes = batch.differentiable(segment.stop, weights)
            size = end.shape[1:]
            if size not in self._combinations:
                self._combinations[size] = combinations(end, notes[-1].output)
                self._fit.width = size.numel() // notes[-1].output.shape[1]
            miss = batch.uncached.path[:, segment.stop].to(end) - end.detach()
            equations.add(end, miss, weight.to(end), batch.folds, notes, self._combinations[size])
        return equations
