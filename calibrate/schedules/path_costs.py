"""What a segment of forecasts costs, told from the uncached runs' own paths: no forward is spent.

In the variable y of noise level tau in which a step is y_{s+1} = y_s + h_s v_s, h_s = tau_{s+1} - tau_s (flow matching:
the latents and sigma; variance preserving: latents over their signal and the noise-to-signal ratio), a segment
a .. b - 1 with step a computed ends in y_b = y_{a+1} + sum of h_s v_s. With the line through v_a and v_a', a' the
computed step before, in place of v_s, it ends elsewhere by a combination of a path's steps, and their inner products
tell how far. Latents that are rounded to half precision at every step blur it: of two kinds of segment the longer one
seems dearer than it is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cachesmith.runtime.models.sampler import is_flow, noise_levels

_STILL = 1e-6
"""Of the largest noise level: a step of less counts as one of this."""

_UNIT = 0.1
"""An initial noise level this close to 1 says that latents keep their variance."""


def told_by_paths(
    scheduler: Any,
    steps: int,
    moves: Callable[[Tensor], Tensor],
    grown: Callable[[Tensor], Tensor] | None = None,
) -> Tensor | None:
    """`path_costs` of uncached runs of `scheduler`; None where it does not tell a noise level for each of the `steps`.

    moves: see `Uncached.moves`. grown(scales): what squared errors of y at each of its points are multiplied by until
    the run ends [S + 1]; costs are errors there.
    """
    known = step_levels(scheduler)
    if known is None or len(known[0]) != steps + 1:
        return None
    levels, scales = known
    costs = path_costs(moves(scales), levels)
    return costs if grown is None else costs * grown(scales)


def step_levels(scheduler: Any) -> tuple[Tensor, Tensor] | None:
    """Noise levels before every step and after the last [S + 1], and what latents are multiplied by there to be y.

    float64; None where the scheduler does not tell a falling level for each of its timesteps.
    """
    known = noise_levels(scheduler)
    levels = torch.tensor([*known, 0.0], dtype=torch.float64)
    if bool((levels.diff() > 0).any()) or not bool(levels.isfinite().all()):
        return None
    keeps_variance = abs(float(getattr(scheduler, "init_noise_sigma", 1.0)) - 1) < _UNIT
    if is_flow(scheduler) or not keeps_variance:
        return levels, torch.ones_like(levels)
    return levels, (1 + levels.square()).sqrt()


def path_costs(moves: Tensor, levels: Tensor) -> Tensor:
    """Squared error at the end of every segment: C [S, S, S + 1], infinite where steps do not ascend.

    moves: [N, S, S], inner products of each sample's y_{s+1} - y_s; levels: [S + 1]. C[i, j, k] is that of computing j,
    with i < j the computed step before, and forecasting j + 1 .. k - 1; C[j, j, k] has no step before.
    """
    steps = len(levels) - 1
    least = _STILL * float(levels.abs().max())
    lengths = levels.diff().clamp_max(-least)
    walked = torch.ones(steps + 1, steps, dtype=torch.float64).tril(-1)
    basis = torch.cat([torch.diag(1 / lengths), walked])
    gram = basis @ moves.double().mean(0) @ basis.T
    cost = torch.full((steps, steps, steps + 1), torch.inf, dtype=torch.float64)
    for computed in range(steps):
        cost[: computed + 1, computed, computed + 1 :] = _errors(gram, lengths, computed)
    return cost


def _errors(gram: Tensor, lengths: Tensor, computed: int) -> Tensor:
    """Of segments that begin at `computed`: [computed + 1 steps before, S - computed ends].

    gram: of the velocities (the first S) and points of a path, which begins at 0.
    """
    steps = len(lengths)
    before, ahead = torch.arange(computed + 1), torch.arange(computed + 1, steps)
    gaps = (computed - before).double()[:, None]
    slopes = torch.where(gaps > 0, (ahead - computed) / gaps, 0.0)
    # sum of h_s (1 + t) v_a - h_s t v_a' over the forecast steps: none of them, the first, the first two ...
    first, second = (
        torch.nn.functional.pad((lengths[ahead] * each).cumsum(1), (1, 0)) for each in (1 + slopes, -slopes)
    )
    ends = torch.arange(steps + computed + 1, 2 * steps + 1)
    shape = (len(before), len(ends))
    where = torch.stack(
        [
            ends.expand(shape),
            ends[0].expand(shape),
            torch.full(shape, computed),
            before[:, None].expand(shape),
        ],
        2,
    )
    ones = torch.ones(shape, dtype=torch.float64)
    left = torch.stack([ones, -ones, -first, -second], 2)
    pairs = gram[where[..., :, None], where[..., None, :]]
    found: Tensor = torch.einsum("abi,abij,abj->ab", left, pairs, left).clamp_min(0)
    return found


def tilted(cost: Tensor, tilt: float, starts: Sequence[int] = (0,)) -> Tensor:
    """Costs of which those at a run's end count e^tilt times as much as those at its start.

    starts: of the run's parts (`Schedule.starts`): each is computed, and has no step before it.
    """
    steps = len(cost)
    found: Tensor = cost * torch.exp(tilt * torch.arange(steps + 1, dtype=torch.float64) / steps)
    for start in starts[1:]:
        found[:, :start, start + 1 :] = torch.inf
        found[:start, start] = found[start, start]
    return found
