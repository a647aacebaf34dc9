"""Closed-loop least squares, segment by segment.

All samples walk the cached run together. What a segment does to the rest of a run is where its last latents end, and
they are to be the sample's own uncached ones. So each segment's weights are one small regression (Gauss-Newton, since
the tail after the blocks is not linear), and the only forwards of the network are those of the computed steps. Samples
are in folds: how far weights are to go is told by walks of each fold by the weights of all others. Then all samples
walk on by the weights of all. Were each fold to walk on by its own (`apart`), where it ends would be an honest score,
but folds would drift apart, each by errors of its own which the others' equations know nothing of.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.axes import AXES, Segment, segments
from cachesmith.calibrate.closed_loop.lanes import Rows, Schedule, corrected, line_weights
from cachesmith.calibrate.closed_loop.stack_equations import StackEquations
from cachesmith.calibrate.closed_loop.walk import Start
from cachesmith.calibrate.fleet.shards import Shards
from cachesmith.calibrate.objective import PSNR, Objective

FOLDS = 4

CAUTIOUS = (0.1, 1.0, 10.0)
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

_FLOOR = 0.01
"""Of the median squared error, added to every sample's."""


@dataclass(frozen=True)
class Curvature:
    """Of one segment: the Cholesky factors of its equations and ridge, one a stream, see `StackEquations.factors`.

    squares: squared errors at its end, from which the run goes on [N]; before, after: their geometric mean's root
    without weights, and out of fold.
    """

    segment: Segment
    factors: tuple[Tensor, ...]
    ridge: float
    before: float
    after: float
    squares: Tensor


@dataclass
class Fit:
    """Weights from all samples; curvatures; width: latents of a token.

    samples: PSNR of the runs that it was fitted in [N], dB; scores: the same by the objective.
    """

    schedule: Schedule
    rows: Rows = field(default_factory=dict)
    curvatures: list[Curvature] = field(default_factory=list)
    width: int = 1
    samples: Tensor = field(default_factory=lambda: torch.zeros(0))
    scores: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def psnr(self) -> float:
        """Mean of the samples, dB."""
        return float(self.samples.mean())

    def saved(self) -> dict[str, Any]:
        """As tensors, numbers and strings."""
        curvatures = [
            (*each.segment, each.factors, each.ridge, each.before, each.after, each.squares)
            for each in self.curvatures
        ]
        return {
            "schedule": tuple(self.schedule), "rows": self.rows, "curvatures": curvatures, "width": self.width,
            "samples": self.samples, "scores": self.scores,
        }  # fmt: skip

    @staticmethod
    def load(saved: dict[str, Any]) -> "Fit":
        """What `saved` was made of."""
        curvatures = [Curvature(Segment(*each[:2]), *each[2:]) for each in saved["curvatures"]]
        schedule, scores = Schedule(*saved["schedule"]), (saved["samples"], saved["scores"])
        return Fit(schedule, saved["rows"], curvatures, saved["width"], *scores)


class Walked(NamedTuple):
    """A segment walked by all samples: where it ends (geometric mean error), and squared errors [N]."""

    error: float
    squares: Tensor


class SegmentFitter:
    """Fits one schedule on uncached samples.

    channels: of each stream that leaves the blocks.
    ridges, turns: fewer of them fit faster, and worse. start: weights to begin with, by default lines; they are kept if
    `hold`, and only their curvature is found. apart: folds walk on by weights of their own, for the sake of the score.
    curved: curvatures are found, which gradients go by.
    advance(samples) is called for every computed step. objective: what samples are scored by.
    """

    def __init__(
        self,
        shards: Shards,
        schedule: Schedule,
        channels: tuple[int, ...],
        *,
        ridges: Sequence[float] = RIDGES,
        turns: int = TURNS,
        start: Rows | None = None,
        hold: bool = False,
        apart: bool = False,
        curved: bool = True,
        advance: Callable[[float], None] | None = None,
        objective: Objective = PSNR,
    ):
        self.shards, self.schedule, self.channels, self.ridges = shards, schedule, channels, ridges
        self.turns, self.hold, self.apart, self.curved = turns, hold, apart, curved
        self.device = shards.device
        self.count = sum(len(group.numbers) for group in shards.groups)
        self.folds, self.start = min(FOLDS, self.count), start
        self.objective = objective
        self.base = start or line_weights(schedule, sum(channels), self.device)
        self.advance = advance or (lambda _: None)
        self.segments = segments(schedule.mask)
        self._fit = Fit(schedule)
        self._places: dict[tuple[float, ...], int] = {}

    def __call__(self) -> Fit:
        """Walk all segments; the pictures of these runs are the score."""
        start = Start(self.schedule, self.channels, self.folds, self.start)
        self.shards.begin(start, torch.arange(self.count) % self.folds)
        for segment in self.segments:
            self._segment(segment)
        self._fit.samples = self._fit.scores = self.shards.scores(PSNR)
        if self.objective != PSNR:
            self._fit.scores = self.shards.scores(self.objective)
        return self._fit

    def _segment(self, segment: Segment) -> None:
        shape = (self.folds, len(self.schedule.lanes), AXES, sum(self.channels))
        theta = torch.zeros(shape, device=self.device)
        part = 1.0 if self.schedule.mask[segment.start] == "C" else 0.5
        self.shards.compute(segment.start, lambda samples: self.advance(part * samples))
        if not any(step in self.base for step in range(*segment)):
            return
        before = best = self._walked(segment, theta)
        together, ridge = theta[0], 0.0
        equations: StackEquations | None = None
        for turn in range(self.turns):
            share = 1.0 if turn or self.hold else FEW
            equations = None  # the last turn's sums make room for the next ones
            equations = self._equations(segment, theta, best.squares, share)
            if self.hold:
                break
            grid = self.ridges if turn else CAUTIOUS
            target = equations.target(theta)
            factor, found, walked = self._turn(segment, equations, target, grid)
            if walked.error >= best.error:
                break
            together = equations.together(target, factor)
            before_turn, best, theta, ridge = best.error, walked, found, factor
            if turn and best.error > WORTH * before_turn:
                break
        assert equations is not None, "there is a turn"
        settled = self._settled(segment, theta if self.apart else together.expand(shape))
        self._fit.rows |= corrected(self.schedule, segment, self.base, together)
        self._fit.width = equations.width
        if self.curved:
            lower = equations.factors(DAMPING)
            self._fit.curvatures.append(
                Curvature(segment, lower, ridge, before.error, best.error, settled.squares)
            )

    def _turn(
        self,
        segment: Segment,
        equations: StackEquations,
        target: list[Tensor],
        grid: Sequence[float],
    ) -> tuple[float, Tensor, Walked]:
        """The ridge of the grid whose out-of-fold weights end closest, these weights, and where they end.

        It is looked for from the one that the last segment took, up or down as long as that comes closer.
        """
        turns: dict[int, tuple[float, Tensor, Walked]] = {}

        def error(place: int) -> float:
            if place not in turns:
                found = equations.without(target, grid[place])
                turns[place] = grid[place], found, self._walked(segment, found)
            return turns[place][2].error

        best = _lowest(error, len(grid), self._places.get(tuple(grid), len(grid) // 2))
        self._places[tuple(grid)] = best
        return turns[best]

    def _walked(self, segment: Segment, theta: Tensor) -> Walked:
        """Walk a segment."""
        squares = self.shards.go(segment, theta).nan_to_num(torch.inf, torch.inf).clamp_min(1e-20)
        return Walked(float((0.5 * squares.log().mean()).exp()), squares)

    def _settled(self, segment: Segment, theta: Tensor) -> Walked:
        """Walk a segment, and go on from where that ends."""
        walked = self._walked(segment, theta)
        self.shards.settle()
        return walked

    def _equations(self, segment: Segment, theta: Tensor, squares: Tensor, share: float) -> StackEquations:
        importance = (squares + _FLOOR * squares.median()) ** -WEIGHT
        return self.shards.equations(segment, theta, importance / importance.mean(), share)


def _lowest(error: Callable[[int], float], count: int, start: int) -> int:
    """Return the place below `count` where `error` is least, if it falls and then rises; looks from `start` on.

    Where it is infinite (under too weak a ridge, weights lead nowhere) the way is up.
    """

    def at(place: int) -> float:
        return error(place) if 0 <= place < count else torch.inf

    best = start
    while best + 1 < count and at(best) == torch.inf:
        best += 1
    way = 1 if at(best + 1) < at(best) else -1
    while at(best + way) < at(best):
        best += way
    return best
