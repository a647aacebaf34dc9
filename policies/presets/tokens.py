"""The published token-wise methods as policies bound to no model."""

from collections.abc import Callable
from typing import Literal

from cachesmith.policies.errors import refusing
from cachesmith.policies.forecaster import Forecaster, Row
from cachesmith.policies.gate import Interval
from cachesmith.policies.policy import Policy, unbound
from cachesmith.policies.profile import Profile
from cachesmith.policies.rows import Reuse, Taylor
from cachesmith.policies.token_refresh import Clustered, Refresh, Scored
from cachesmith.policies.units import Modules

MLP_FACTOR = 2.5
"""ToCa's code spends no tokens on attention, and 1 + 0.6 * 2.5 times the ratio on MLPs."""

Importance = Literal["norm", "moved", "random", "none"]


@refusing("preset toca")
def toca(
    interval: int = 4,
    ratio: float = 0.07,
    age_weight: float = 0.25,
    slope: float = 0.8,
    importance: Importance = "norm",
    warmup: int = 1,
) -> Policy:
    """ToCa (arXiv 2410.05317): reuse, and compute 2.5 * `ratio` of each MLP's tokens on the steps between.

    The defaults are the authors' for DiT: N = 3 or 4, R = 0.07, lambda_3 = 0.25 over N, layer factor 0.8. Left out
    are the attention score (see `Scored`), the bonus for one token in each square of four, the step factor, which the
    authors found not to matter, and the longer intervals at early steps.
    """
    gate = Interval(interval=interval, warmup=warmup)
    given = Scored(ratio=ratio, importance=importance, age_weight=age_weight, slope=slope)
    return _policy("toca", gate, Reuse(), _spent_on_mlps(given, gate))


@refusing("preset duca")
def duca(
    interval: int = 4,
    ratio: float = 0.07,
    age_weight: float = 0.25,
    slope: float = 0.8,
    importance: Importance = "random",
    warmup: int = 1,
) -> Policy:
    """DuCa (arXiv 2412.18911): ToCa's steps alternate with steps that only reuse; tokens chosen at random.

    The first step after a computed one is ToCa's, the second reuses, and so on. The defaults are ToCa's. DuCa reuses
    the output of the whole network on its second kind of step, here every module's.
    """
    gate = Interval(interval=interval, warmup=warmup)
    given = Scored(ratio=ratio, importance=importance, age_weight=age_weight, slope=slope, every=2)
    return _policy("duca", gate, Reuse(), _spent_on_mlps(given, gate))


@refusing("preset clusca")
def clusca(
    interval: int = 5,
    order: int = 2,
    clusters: int = 16,
    blend: float = 0.005,
    iterations: int = 5,
    warmup: int = 2,
) -> Policy:
    """ClusCa (arXiv 2509.10312): Taylor forecasts, and one token of every cluster is computed and spread.

    The authors use N = 5, K = 16 clusters, p = 0.005 and Taylor of order 1 to 2. Here every MLP clusters the tokens
    of its own output, in a fixed number of `iterations` from evenly spaced tokens.
    """
    gate = Interval(interval=interval, warmup=warmup)
    refresh = Clustered(clusters=clusters, iterations=iterations, blend=blend)
    return _policy("clusca", gate, Taylor(order=order), refresh)


def _spent_on_mlps(given: Scored, gate: Interval) -> Scored:
    """Turn ToCa's ratio of all modules into one of MLPs, and its lambda_3 into a weight of one step."""
    ratio, weight = min(1.0, MLP_FACTOR * given.ratio), given.age_weight / gate.interval
    return given.model_copy(update={"ratio": ratio, "age_weight": weight})


def _policy(name: str, gate: Interval, row: Row, refresh: Refresh) -> Policy:
    profile = Profile(units=Modules(), gate=gate, forecaster=Forecaster(rows=row, refresh=refresh))
    return unbound(profile, name=name)


TOKEN_PRESETS: dict[str, Callable[..., Policy]] = {
    "toca": toca,
    "duca": duca,
    "clusca": clusca,
}
