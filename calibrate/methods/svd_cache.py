"""SVD-Cache (arXiv 2601.07396) on a model: forecast the principal part of the channels, reuse the rest.

The paper projects onto the leading right singular vectors V of the outputs of a reference run; the singular values
cancel, so F V V^T is all that is left of U S V^T. As printed, the principal part follows a moving average with
beta = 0.9, which weighs the newest output with a tenth and therefore lags behind it: `row="ema"`. Any other row may
forecast it instead, and `distance` above 0 takes V from the outputs' changes over so many steps, which is what a
forecast moves, rather than from the outputs.
"""

from collections.abc import Sequence

from cachesmith.calibrate.fit.solvers import named_row
from cachesmith.calibrate.fit.subspace import bases, record_moments
from cachesmith.calibrate.methods.granularity import granularity
from cachesmith.policies import Ema, Forecaster, Policy, Profile, Subspace, unbound
from cachesmith.policies.errors import refusing
from cachesmith.policies.schedule import interval_gate
from cachesmith.runtime.models.units import block_lists
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request

_PREFIX = "svd-cache"


@refusing("method svd-cache")
def fit_svd_cache(
    renderer: Renderer,
    requests: Sequence[Request],
    *,
    interval: int = 5,
    warmup: int = 2,
    budget: int | None = None,
    units: str = "stack",
    energy: float = 0.85,
    row: str = "ema",
    beta: float = 0.9,
    distance: int = 0,
) -> Policy:
    """Sample `requests` uncached and return a policy that forecasts inside their principal subspace.

    interval and warmup, or budget (steps spread evenly): which steps are computed. units: `stack`, `segment` or
    `module`. energy: share of the squared singular values that the subspace holds.
    row: `ema`, with `beta`, or the name of a solver such as `taylor-2`.

    Raises `PolicyError` for values out of range and unknown names.
    """
    transformer = renderer.pipe.transformer
    chosen = granularity(units, len(block_lists(transformer)))
    forecast = Ema(beta=beta) if row == "ema" else named_row(row)
    basis = f"{_PREFIX}/basis"
    profile = Profile(
        units=chosen,
        gate=interval_gate(renderer.steps, interval, budget, warmup),
        forecaster=Forecaster(rows=forecast, subspace=Subspace(basis=basis)),
    )
    moments = record_moments(renderer, requests, chosen, distance)
    return unbound(profile, {basis: bases(moments, energy).numpy()})
