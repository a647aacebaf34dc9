"""Fits from recorded movements: pure functions of tensors."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

import torch
from torch import Tensor

from cachesmith.calibrate.record.recorder import Movements


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
    at = [torch.full((len(i),), min(step * bins // steps, bins - 1)) for step, _, i, _ in movements.entries]
    where = torch.cat(at)
    moved = torch.cat([i.double() for *_, i, _ in movements.entries])
    made = torch.cat([o.double() for *_, o in movements.entries])
    overall = _slope(moved, made)
    scales = torch.stack(
        [_slope(moved[where == b], made[where == b]) if (where == b).any() else overall for b in range(bins)]
    )
    predicted = scales[where] * moved
    unexplained = ((made - predicted) ** 2).sum()
    r2 = 1 - unexplained / ((made - made.mean()) ** 2).sum().clamp_min(1e-30)
    ratio = made / moved.clamp_min(1e-12)
    return ScaleFit(scales, float(ratio.std() / ratio.mean().clamp_min(1e-12)), float(r2))


def fit_correction(movements: Movements, steps: int, bins: int) -> Tensor:
    """How the ratio |dO| / |dI| over k steps compares with the one over the k steps before: [bins].

    This is what the scale observed at run time is off by on average; `Mixed` multiplies it back.
    """
    ratios: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    for step, k, moved, made in movements.entries:
        ratios[step, k].append((made / moved.clamp_min(1e-12)).double())
    sums = torch.zeros(2, bins, dtype=torch.float64)
    for (step, k), found in ratios.items():
        where = min(step * bins // steps, bins - 1)
        # every run and branch comes by the same steps in the same order
        for after, before in zip(found, ratios.get((step - k, k), ()), strict=False):
            sums[0, where] += (after * before).sum()
            sums[1, where] += before.square().sum()
    return torch.where(sums[1] > 0, sums[0] / sums[1].clamp_min(1e-30), 1.0)


def _slope(moved: Tensor, made: Tensor) -> Tensor:
    return (moved * made).sum() / (moved * moved).sum().clamp_min(1e-30)


def forecast_costs(features: Tensor, times: Sequence[float], order: int = 1) -> Tensor:
    """Cost of forecasting the steps between two computations by Taylor's rule on the last computed outputs.

    features: [S, N, E], the outputs of all S steps for N samples; order: 1 (a line) or 2 (DPCache's predictor).
    Returns C [S, ..., S, S + 1]: for order 1 C[i, j, k] is the summed error of steps j+1 .. k-1 forecast from steps
    i < j, mean over samples of the L2 norm; order 2 has one older step in front. A step that is named twice stands for
    a history that is one shorter: C[j, j, k] is reuse of j. Sources that do not ascend cost infinitely much.
    """
    steps = len(features)
    time, wide = torch.tensor(times, dtype=torch.float64), features.double()
    products = torch.einsum("sne,tne->nst", wide, wide)
    cost = torch.full((*(steps,) * (order + 1), steps + 1), torch.inf, dtype=torch.float64)
    for j in range(steps):
        older = torch.tensor(list(combinations_with_replacement(range(j + 1), order)))
        sources = torch.cat([older, torch.full((len(older), 1), j)], dim=1)
        error = _forecast_errors(products, time, sources, torch.arange(j + 1, steps))
        cost[(*sources.T, slice(j + 1, None))] = torch.nn.functional.pad(error.cumsum(1), (1, 0))
    return cost


def _forecast_errors(products: Tensor, time: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
    """Mean over samples of |forecast - truth| [P, T], for sources [P, order + 1] (oldest first) and target steps [T].

    products: [N, S, S], inner products of a sample's outputs. The squared norm of sum_a c_a F_a is c^T G c.
    """
    weights = taylor_weights(time[sources], time[targets])
    minus = torch.full_like(weights[..., :1], -1.0)
    coefficients = torch.cat([weights, minus], dim=2)
    shape = (len(sources), len(targets), -1)
    nodes = torch.cat(
        [sources[:, None].expand(shape), targets[None, :, None].expand(len(sources), -1, 1)], dim=2
    )
    total = torch.zeros(shape[:2], dtype=torch.float64)
    for gram in products:
        picked = gram[nodes[..., :, None], nodes[..., None, :]]
        square = torch.einsum("pta,ptab,ptb->pt", coefficients, picked, coefficients)
        total += square.clamp_min(0).sqrt()
    return total / len(products)


def taylor_weights(past: Tensor, now: Tensor) -> Tensor:
    """TaylorSeer's weights of order 1 or 2 for many histories at once: [P, T, order + 1], oldest first.

    past: [P, order + 1] times, oldest first, an equal pair standing for a history that is one shorter; now: [T].
    """
    ahead = now - past[:, -1:]
    gaps = past.diff(dim=1)
    inverse = torch.where(gaps != 0, 1 / gaps, 0.0)
    first = ahead * inverse[:, -1:]
    if past.shape[1] == 2:
        return torch.stack([-first, 1 + first], dim=2)
    known = (inverse[:, :1] != 0) & (inverse[:, 1:] != 0)
    second = torch.where(known, ahead**2 / 2 * inverse[:, 1:], 0.0)
    old, new = second * inverse[:, :1], second * inverse[:, 1:]
    return torch.stack([old, -first - new - old, 1 + first + new], dim=2)


def plan_schedules(cost: Tensor, budgets: Sequence[int], forced: int = 1) -> dict[int, str]:
    """Best schedules by dynamic programming (DPCache, arXiv 2602.22654): budget -> mask of C and F.

    cost: as from `forecast_costs`. D[m, ..., i, j] is the least cost with m computed steps so far, the last of them at
    .. < i < j; the next computed step k pays C[..., i, j, k]. The first `forced` steps are computed.
    """
    steps, most = cost.shape[0], max(budgets)
    cost = cost.clone()
    for j in range(forced - 1):
        cost[..., j, j + 2 :] = torch.inf
    shape = (most + 1, *cost.shape[:-1])
    best = torch.full(shape, torch.inf, dtype=torch.float64)
    came = torch.zeros(shape, dtype=torch.long)
    best[(1, *(0,) * (cost.ndim - 1))] = 0.0
    for m in range(2, most + 1):
        # from (h, .., j), entered with m - 1 computations, to (.., j, k)
        options = best[m - 1].unsqueeze(-1) + cost[..., :steps]
        best[m], came[m] = options.min(dim=0)
    return {n: _trace(best, came, cost, n) for n in budgets}


def _trace(best: Tensor, came: Tensor, cost: Tensor, budget: int) -> str:
    steps = cost.shape[0]
    total = best[budget] + cost[..., steps]
    state = tuple(int(i) for i in torch.unravel_index(total.argmin(), total.shape))
    computed = {state[-1]}
    for m in range(budget, 1, -1):
        computed.add(state[-2])
        state = (int(came[(m, *state)]), *state[:-1])
    return "".join("C" if step in computed else "F" for step in range(steps))
