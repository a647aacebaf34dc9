"""L2P (arXiv 2604.26365): a matrix of weights that forecast an output from all before it, trained step by step.

Source: `predictor/train.py` and the lists of full steps of Aredstone/L2P-Cache at commit 3df73ce4. Row t of the lower
triangle holds the weights of outputs 0 to t in the forecast of step t + 1. They start as reuse and follow the gradient
of the mean squared error of that one forecast, from true outputs; sampling then appends forecasts to the history. The
original forecasts what the model returns; this fits and forecasts what enters its output head. The weights per band of
frequencies that the paper speaks of are not applied by its code, and are left out here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cachesmith.calibrate.methods.final_features import final_features
from cachesmith.policies import Policy, PolicyError, unbound
from cachesmith.policies.convert.final_feature import forecasting
from cachesmith.policies.convert.l2p import _LONGEST, unrolled
from cachesmith.policies.schedule import from_steps
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request

_FIRST = (0, 1, 2, 4)
"""Computed steps at the start."""

LISTS = {
    6: (16, 32),
    7: (12, 24, 38),
    8: (10, 20, 31, 41),
    9: (9, 17, 26, 35, 43),
    10: (7, 14, 23, 31, 38, 45),
    11: (6, 9, 14, 23, 30, 37, 44),
}
"""The authors' further computed steps of 50, by the number of computed steps."""


def fit_l2p(
    renderer: Renderer,
    requests: Sequence[Request],
    *,
    budget: int = 8,
    epochs: int = 201,
    rate: float = 0.01,
) -> Policy:
    """Train the matrix on uncached runs of `requests` and return it on the authors' schedule of `budget` steps.

    For numbers of steps that they give no list for, those after the first four are spread evenly. epochs and rate: of
    Adam. Raises `PolicyError` for a budget below 5 or above the number of steps, and for more than 200 steps.
    """
    steps = renderer.steps
    if not len(_FIRST) < budget <= steps or steps > _LONGEST:
        raise PolicyError(
            f"the budget is {budget} of {steps} steps; give one from {len(_FIRST) + 1} to {steps}, of at most "
            f"{_LONGEST} steps"
        )
    features = final_features(renderer, requests).double()
    weights = trained(torch.einsum("sne,tne->st", features, features) / features[0].numel(), epochs, rate)
    mask = l2p_mask(budget, steps)
    profile, arrays = forecasting(mask, unrolled(mask, weights.tolist()))
    return unbound(profile, arrays)


def l2p_mask(budget: int, steps: int) -> str:
    """Return the mask of the authors' list, or of evenly spread steps after the first four."""
    if steps == 50 and budget in LISTS:
        return from_steps((*_FIRST, *LISTS[budget]), steps)
    # the last of the first four is where the spread begins; near the full number of steps, gaps close up
    count, start = budget - len(_FIRST), _FIRST[-1]
    spread = {start + max(1, round((steps - start) * i / (count + 1))) for i in range(1, count + 1)}
    chosen = {*_FIRST, *spread} & {*range(steps)}
    missing = (step for step in range(steps) if step not in chosen)
    while len(chosen) < budget:
        chosen.add(next(missing))
    return from_steps(chosen, steps)


def trained(products: Tensor, epochs: int, rate: float) -> Tensor:
    """Return the lower triangle of weights [S, S], trained by Adam from the identity.

    products: [S, S], mean over samples and elements of F_s F_t, which is all that the squared error depends on.
    """
    steps = len(products)
    triangle = torch.ones_like(products).tril()
    weights = torch.eye(steps, dtype=products.dtype).requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=rate)
    for _ in range(epochs):
        row = (weights * triangle)[:-1]
        # |row F - F_next|^2, from inner products
        loss = ((row @ products) * row).sum() - 2 * (row * products[1:]).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss / (steps - 1))
        optimizer.step()
    return (weights * triangle).detach()
