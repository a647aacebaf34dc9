"""Fits from recorded movements: pure functions of tensors."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cachesmith.calibrate.record import Movements


class ScaleFit(NamedTuple):
    """RFE's scale s = |dO| / |dI| of one lane: per time bin, and how well one number describes it.

    scales: [bins]; spread: relative standard deviation of the ratio over samples, steps and distances; r2: share of
    the variance of |dO| that s |dI| explains.
    """

    scales: Tensor
    spread: float
    r2: float


def fit_scale(movements: Movements, steps: int, bins: int) -> ScaleFit:
    """Least squares of |dO| on |dI| through the origin, in each of `bins` equal parts of the trajectory.

    RFC (arXiv 2602.19506) observes s from the last two computed steps; measured offline it needs no second one.
    """
    where = torch.tensor([min(step * bins // steps, bins - 1) for step, *_ in movements.entries])
    moved = torch.stack([i.double() for *_, i, _ in movements.entries])
    made = torch.stack([o.double() for *_, o in movements.entries])
    overall = _slope(moved, made)
    scales = torch.stack(
        [_slope(moved[where == b], made[where == b]) if (where == b).any() else overall for b in range(bins)]
    )
    predicted = scales[where][:, None] * moved
    unexplained = ((made - predicted) ** 2).sum()
    r2 = 1 - unexplained / ((made - made.mean()) ** 2).sum().clamp_min(1e-30)
    ratio = made / moved.clamp_min(1e-12)
    return ScaleFit(scales, float(ratio.std() / ratio.mean().clamp_min(1e-12)), float(r2))


def fit_correction(movements: Movements, steps: int, bins: int) -> Tensor:
    """How the ratio |dO| / |dI| over k steps compares with the one over the k steps before: [bins].

    This is what the scale observed at run time is off by on average; `Mixed` multiplies it back.
    """
    ratios = {(step, k): made / moved.clamp_min(1e-12) for step, k, moved, made in movements.entries}
    pairs = [(step, r, ratios[step - k, k]) for (step, k), r in ratios.items() if (step - k, k) in ratios]
    sums = torch.zeros(2, bins, dtype=torch.float64)
    for step, after, before in pairs:
        where = min(step * bins // steps, bins - 1)
        sums[0, where] += (after.double() * before.double()).sum()
        sums[1, where] += before.double().square().sum()
    return torch.where(sums[1] > 0, sums[0] / sums[1].clamp_min(1e-30), 1.0)


def _slope(moved: Tensor, made: Tensor) -> Tensor:
    return (moved * made).sum() / (moved * moved).sum().clamp_min(1e-30)


def forecast_costs(features: Tensor, times: Sequence[float]) -> Tensor:
    """Cost of forecasting the steps between two computations by a line through the last two computed outputs.

    features: [S, N, E], the outputs of all S steps for N samples. Returns C [S, S, S + 1]: C[i, j, k] is the summed
    error of steps j+1 .. k-1 forecast from steps i < j (with i = j: reuse of j), mean over samples of the L2 norm.
    """
    steps = len(features)
    time = torch.tensor(times, dtype=torch.float64)
    cost = torch.full((steps, steps, steps + 1), torch.inf, dtype=torch.float64)
    for j in range(steps):
        for i in range(j + 1):
            slope = 0.0 if i == j else (features[j] - features[i]) / float(time[j] - time[i])
            ahead = (time[j + 1 :] - time[j]).float()[:, None, None]
            error = (features[j] + ahead * slope - features[j + 1 :]).norm(dim=2).mean(1).double()
            cost[i, j, j + 1 :] = torch.cat([torch.zeros(1, dtype=torch.float64), error.cumsum(0)])
    return cost


def plan_schedules(cost: Tensor, budgets: Sequence[int]) -> dict[int, str]:
    """Best schedules by dynamic programming (DPCache, arXiv 2602.22654): budget -> mask of C and F.

    D[m, i, j] is the least cost with m computed steps so far, the last two at i < j; the next computed step k pays
    C[i, j, k].
    """
    steps, most = cost.shape[0], max(budgets)
    best = torch.full((most + 1, steps, steps), torch.inf, dtype=torch.float64)
    came = torch.zeros((most + 1, steps, steps), dtype=torch.long)
    best[1, 0, 0] = 0.0
    for m in range(2, most + 1):
        # From (h, j), entered with m - 1 computations, to (j, k).
        options = best[m - 1][:, :, None] + cost[:, :, :steps]
        value, origin = options.min(dim=0)
        best[m], came[m] = value, origin
    return {n: _trace(best, came, cost, n) for n in budgets}


def _trace(best: Tensor, came: Tensor, cost: Tensor, budget: int) -> str:
    steps = cost.shape[0]
    total = best[budget] + cost[:, :, steps]
    i, j = divmod(int(total.argmin()), steps)
    computed = {j}
    for m in range(budget, 1, -1):
        computed.add(i)
        i, j = int(came[m, i, j]), i
    return "".join("C" if step in computed else "F" for step in range(steps))
