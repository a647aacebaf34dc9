"""HyCa's pool of solvers on a fixed schedule: their weights, their errors on recorded runs, and rows fitted to those.

A channel's temporal Gram matrix K[s, t] = mean of F_s F_t says all there is to know: the forecast sum_j w_j F_j of F_s
has the mean squared error K[s, s] - 2 w K[sources, s] + w K[sources, sources] w. C: channels, G: groups of them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from cachesmith.policies import (
    AdamsBashforth,
    Bdf,
    ClosedRow,
    Ema,
    Hermite,
    Heun,
    Lagrange,
    PolicyError,
    Reuse,
    Taylor,
)
from cachesmith.policies.rows import forecast_weights
from cachesmith.policies.schedule import computed_steps

POOL: Mapping[str, ClosedRow] = {
    "reuse": Reuse(),
    "taylor-1": Taylor(order=1),
    "taylor-2": Taylor(order=2),
    "adams-bashforth-2": AdamsBashforth(order=2),
    "adams-bashforth-3": AdamsBashforth(order=3),
    "bdf-2": Bdf(),
    "heun": Heun(),
    "hermite-2": Hermite(order=2),
}
"""Runge-Kutta and Adams-Moulton of the paper's pool are `heun`, see there."""

_ROWS: Mapping[str, ClosedRow] = {**POOL, "lagrange-2": Lagrange(order=2), "ema": Ema()}
"""Every row that may be named in an option."""


def named_row(name: str) -> ClosedRow:
    """Return the row of that name; an unknown one is refused with the known ones."""
    if name not in _ROWS:
        raise PolicyError(f"there is no solver {name!r}; choose from {', '.join(_ROWS)}")
    return _ROWS[name]


def newest_computed(mask: str, step: int, taps: int) -> list[int]:
    """The newest `taps` computed steps before `step`, newest first."""
    return computed_steps(mask[:step])[::-1][:taps]


def row_table(row: ClosedRow, mask: str, taps: int) -> Tensor:
    """Weights of `row` on a schedule: [steps, taps], float64, zero on computed steps."""
    table = torch.zeros(len(mask), taps, dtype=torch.float64)
    for step, letter in enumerate(mask):
        if letter == "F":
            past = [float(s) for s in newest_computed(mask, step, taps)]
            weights = forecast_weights(row, past, float(step))
            table[step, : len(weights)] = torch.tensor(weights, dtype=torch.float64)
    return table


def grouped_gram(gram: Tensor, ids: Tensor, groups: int) -> Tensor:
    """Mean Gram matrix of every group: [C, steps, steps] and ids [C] -> [G, steps, steps]; zero for an empty one."""
    chosen = torch.nn.functional.one_hot(ids.long(), groups).double()
    shares = chosen / chosen.sum(0).clamp_min(1)
    mean: Tensor = torch.einsum("cg,cst->gst", shares, gram)
    return mean


def forecast_errors(gram: Tensor, table: Tensor, mask: str) -> Tensor:
    """Relative forecast error of every group: sum of squared errors over that of squares on the forecast steps, [G].

    gram: [G, steps, steps]; table: weights [steps, taps, G].
    """
    wrong, all_of_it = torch.zeros(2, len(gram), dtype=torch.float64)
    for step, letter in enumerate(mask):
        if letter == "F":
            past = newest_computed(mask, step, table.shape[1])
            weights = table[step, : len(past)].T.double()
            cross, square = gram[:, past, step], gram[:, past][:, :, past]
            wrong += gram[:, step, step] - 2 * (weights * cross).sum(1)
            wrong += torch.einsum("gi,gij,gj->g", weights, square, weights)
            all_of_it += gram[:, step, step]
    relative: Tensor = wrong.clamp_min(0) / all_of_it.clamp_min(1e-30)
    return relative


def ridge_table(gram: Tensor, mask: str, taps: int, ridge: float) -> Tensor:
    """Least-squares weights of every group on recorded runs: [steps, taps, G], each row with sum one.

    gram: [G, steps, steps]. A row minimises its mean squared error + `ridge` * e * |w - line|^2, where e is the mean
    square of the outputs' differences and `line` continues the last two computed outputs.
    """
    if not ridge > 0:
        raise PolicyError(f"ridge is {ridge}; give a number above 0, such as 1e-3")
    line = row_table(Lagrange(order=1), mask, taps)
    table = torch.zeros(len(mask), taps, len(gram), dtype=torch.float64)
    for step, letter in enumerate(mask):
        if letter == "F":
            past = newest_computed(mask, step, taps)
            start = line[step, : len(past)]
            table[step, : len(past)] = _ridge_row(
                gram[:, past][:, :, past], gram[:, past, step], start, ridge
            ).T
    return table


def _ridge_row(square: Tensor, cross: Tensor, start: Tensor, ridge: float) -> Tensor:
    """w = start + Z v with Z's columns e_j - e_0, so that the sum stays: [G, n, n], [G, n], [n] -> [G, n]."""
    size = len(start)
    if size == 1:
        return start.expand(len(square), 1)
    moves = torch.eye(size, dtype=torch.float64)[:, 1:]
    moves[0] = -1.0
    reduced = moves.T @ square @ moves
    scale = reduced.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
    system = reduced + ridge * scale[:, None, None] * (moves.T @ moves)
    steer: Tensor = torch.linalg.solve(system, (cross - square @ start) @ moves)
    return start + steer @ moves.T
