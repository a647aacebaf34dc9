"""The published token-wise methods as policies bound to no model."""

from typing import Literal

from cachesmith.policies.document import Document, Profile
from cachesmith.policies.errors import refusing
from cachesmith.policies.forecaster import Forecaster, Reuse, Taylor
from cachesmith.policies.gate import Interval
from cachesmith.policies.policy import Policy
from cachesmith.policies.refresh import Clustered, Scored
from cachesmith.policies.units import Modules

MLP_FACTOR = 2.5
"""ToCa's code spends no tokens on attention and 1 + 0.6 * 2.5 times the ratio on MLPs."""

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
    refresh = Scored(
        ratio=MLP_FACTOR * ratio, importance=importance, age_weight=age_weight / interval, slope=slope
    )
    return _bound_to_nothing(
        "toca", Interval(interval=interval, warmup=warmup), Forecaster(rows=Reuse(), refresh=refresh)
    )


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
    refresh = Scored(
        ratio=MLP_FACTOR * ratio,
        importance=importance,
        age_weight=age_weight / interval,
        slope=slope,
        every=2,
    )
    return _bound_to_nothing(
        "duca", Interval(interval=interval, warmup=warmup), Forecaster(rows=Reuse(), refresh=refresh)
    )


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

    The authors use N = 5, K = 16 clusters, p = 0.005 and Taylor of order 1 to 2. They cluster once for all layers;
    here every MLP clusters its own tokens, in a fixed number of `iterations` from evenly spaced tokens.
    """
    refresh = Clustered(clusters=clusters, iterations=iterations, blend=blend)
    return _bound_to_nothing(
        "clusca",
        Interval(interval=interval, warmup=warmup),
        Forecaster(rows=Taylor(order=order), refresh=refresh),
    )


def _bound_to_nothing(name: str, gate: Interval, forecaster: Forecaster) -> Policy:
    profile = Profile(units=Modules(), gate=gate, forecaster=forecaster)
    return Policy(Document(name=name, profiles={"default": profile}))
