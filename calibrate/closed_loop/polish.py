"""Natural gradient through whole cached runs, from the least squares' weights, in the coordinates of their curvature.

Least squares spend nothing on what comes later. A cached run is differentiable: the gradient of where all segments
end in all segments' weights costs a backward pass of the computed steps but the first. Coordinates phi of a segment
are such that theta = L^-T phi, L L^T the mean curvature of its equations and ridge, for each stream: a unit of any phi
moves its end equally far.
The log of a squared error e^2, mean over a token's n latents, has the curvature 2 / (n e^2) along any phi, so one rate
serves all segments: it is the damping of a Newton step.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.axes import AXES
from cachesmith.calibrate.closed_loop.descent import FLOOR, Point, loss
from cachesmith.calibrate.closed_loop.fit import Curvature, Fit
from cachesmith.calibrate.closed_loop.lanes import Rows, corrected
from cachesmith.calibrate.fleet.groups import cut, draws
from cachesmith.calibrate.fleet.shards import Shards

RATE = 0.2
"""Of a Newton step, in the first half of the iterations; then it falls to nothing."""

MOMENTUM = 0.7

TRUST = 0.3
"""Of the error at its end, a segment's weights move its latents by no more in one iteration."""

_LONGEST = 0.5
"""Of its own error, a sample asks no segment to move its latents by more."""

_TINY = 1e-30

CHANCE = 3.0
"""Standard errors by which the loss, less what least squares left of it on the same samples, may rise.

Errors of the comparison: with two of the batch's alone, a loss that stays as it is was taken for a rise twice in 19
iterations.
"""

LATELY = 4
"""Iterations that it is compared with."""


class Polisher:
    """Improves the weights of `fit`, by gradients of at most `size` samples.

    recomputed: see `Point`.
    """

    def __init__(
        self,
        shards: Shards,
        fit: Fit,
        size: int = 8,
        seed: int = 0,
        rate: float = RATE,
        recomputed: bool = False,
    ):
        self.shards, self.fit, self.size, self.seed = shards, fit, size, seed
        self.rate, self.recomputed = rate, recomputed
        self.state: dict[str, list[Tensor]] = {
            name: [torch.zeros(_unknowns(each), device=shards.device) for each in fit.curvatures]
            for name in ("phi", "kept", "momentum", "average")
        }
        self.iteration, self.scale = 0, 1.0
        self.losses: list[float] = []
        squares = torch.stack([each.squares.cpu() for each in fit.curvatures])
        self._units = cut(shards.groups, size)
        self._before = loss((squares + FLOOR).log())

    def __call__(self, iterations: int, advance: Callable[[float], None] | None = None) -> Rows:
        """Go on to `iterations` in all, and return the weights: the mean of those of the second half."""
        for iteration in range(self.iteration, iterations):
            drawn = self._drawn(iteration)
            grads, errors, losses = self._gradients(drawn, advance)
            if self._accepted(losses - self._before[drawn]):
                self._step(grads, errors, iteration, iterations)
            self._average(iteration, iterations)
            self.iteration = iteration + 1
        return self.fit.rows if self._worse() else self._weights(self.state["average"])

    def _accepted(self, losses: Tensor) -> bool:
        """Keep the weights unless the loss rose by more than chance; else go back, and take shorter steps."""
        if _rose(losses, self.losses[-LATELY:]):
            self.scale /= 2
            for phi, kept, momentum in zip(
                *(self.state[n] for n in ("phi", "kept", "momentum")), strict=True
            ):
                phi.copy_(kept)
                momentum.zero_()
            return False
        self.losses.append(float(losses.mean()))
        for phi, kept in zip(self.state["phi"], self.state["kept"], strict=True):
            kept.copy_(phi)
        return True

    def _average(self, iteration: int, iterations: int) -> None:
        """Count weights that were kept: where the next step leads has not been seen."""
        if iteration >= iterations // 2:
            for kept, average in zip(self.state["kept"], self.state["average"], strict=True):
                average.add_(kept, alpha=1 / (iterations - iterations // 2))

    def _worse(self) -> bool:
        """Whether the loss rose: least squares are kept where gradients led astray."""
        part = max(1, len(self.losses) // 3)
        return sum(self.losses[-part:]) > sum(self.losses[:part])

    def saved(self) -> dict[str, Any]:
        """All that an interrupted one needs to go on."""
        return {"iteration": self.iteration, "scale": self.scale, "state": self.state, "losses": self.losses}

    def load(self, saved: dict[str, Any]) -> None:
        """Go on where `saved` was made."""
        self.iteration, self.scale = saved["iteration"], saved["scale"]
        self.losses, state = [*saved["losses"]], saved["state"]
        self.state = {name: [each.to(self.shards.device) for each in state[name]] for name in state}

    def _drawn(self, iteration: int) -> list[int]:
        return next(islice(draws(self._units, self.size, self.seed), iteration, None))

    def _step(self, grads: list[Tensor], errors: list[float], iteration: int, iterations: int) -> None:
        rate = self.scale * self.rate * min(1.0, 2 * (1 - iteration / iterations))
        for index, (grad, error) in enumerate(zip(grads, errors, strict=True)):
            phi, momentum = self.state["phi"][index], self.state["momentum"][index]
            momentum.mul_(MOMENTUM).add_(grad, alpha=error * self.fit.width / 2)
            longest = TRUST * (error * self.fit.width) ** 0.5
            length = rate * (1 - MOMENTUM) * float(momentum.norm())
            phi.sub_(momentum, alpha=rate * (1 - MOMENTUM) * min(1.0, longest / max(length, FLOOR)))

    def _weights(self, phis: Sequence[Tensor]) -> Rows:
        rows = dict(self.fit.rows)
        for curvature, theta in zip(self.fit.curvatures, self._thetas(phis), strict=True):
            rows |= corrected(self.fit.schedule, curvature.segment, self.fit.rows, theta)
        return rows

    def _thetas(self, phis: Sequence[Tensor]) -> list[Tensor]:
        """theta = L^-T phi of every segment, [lanes, AXES, channels]."""
        shape = (len(self.fit.schedule.lanes), AXES, -1)
        thetas = []
        for curvature, phi in zip(self.fit.curvatures, phis, strict=True):
            own = zip(curvature.factors, torch.split(phi, [*map(len, curvature.factors)]), strict=True)
            found = [
                torch.linalg.solve_triangular(factor.to(part.device).T, part[:, None], upper=True)
                for factor, part in own
            ]
            thetas.append(torch.cat([each.reshape(shape) for each in found], -1))
        return thetas

    def _gradients(
        self, numbers: Sequence[int], advance: Callable[[float], None] | None
    ) -> tuple[list[Tensor], list[float], Tensor]:
        """Of the mean log error; the geometric mean of each segment's squared error; and the samples' losses."""
        segments = tuple(curvature.segment for curvature in self.fit.curvatures)
        thetas = tuple(self._thetas(self.state["phi"]))
        point = Point(self.fit.schedule, segments, self.fit.rows, thetas, self.recomputed)
        found, ends = self.shards.gradients(numbers, point, advance or (lambda _: None))
        grads = []
        for curvature, each, errors in zip(self.fit.curvatures, found, ends, strict=True):
            along = self._along(curvature, each)
            grads.append(self._clipped(along, errors.to(along)).mean(0))
        return grads, ends.mean(1).exp().tolist(), loss(ends)

    def _along(self, curvature: Curvature, grads: Tensor) -> Tensor:
        """d / d phi = L^-1 d / d theta, of each sample [N, unknowns]."""
        lanes = len(self.fit.schedule.lanes)
        whole = grads.view(len(grads), lanes, AXES, -1)
        sizes = [len(factor) // (lanes * AXES) for factor in curvature.factors]
        own = zip(curvature.factors, torch.split(whole, sizes, -1), strict=True)
        found = [
            torch.linalg.solve_triangular(factor.to(part.device), part.flatten(1).T, upper=False).T
            for factor, part in own
        ]
        return torch.cat(found, 1)

    def _clipped(self, grads: Tensor, logs: Tensor) -> Tensor:
        """Each sample's gradient [samples, unknowns] of a log squared error [samples], no longer than its own error.

        Of a run that drifts chaotically the gradient is as long as one likes, and says nothing.
        """
        longest = _LONGEST * 2 / (self.fit.width * logs.exp()).sqrt()
        length = grads.norm(dim=1).clamp_min(_TINY)
        shares: Tensor = (longest / length).clamp_max(1.0)
        return grads * shares[:, None]


def _unknowns(curvature: Curvature) -> int:
    return sum(map(len, curvature.factors))


def _rose(losses: Tensor, lately: Sequence[float]) -> bool:
    """Whether a batch's losses are above the means of those before it by more than chance, or not finite."""
    if not lately:
        return False
    spread = float(losses.std(correction=min(1, len(losses) - 1)))
    chance = CHANCE * spread * (1 / len(losses) + 1 / (len(lately) * len(losses))) ** 0.5
    return not float(losses.mean()) <= sum(lately) / len(lately) + chance
