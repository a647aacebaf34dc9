"""Presets that forecast with one closed row: reuse, TaylorSeer and its relatives, RFC."""

from collections.abc import Callable

from cachesmith.policies.errors import refusing
from cachesmith.policies.forecaster import Forecaster, Observed, Row
from cachesmith.policies.gate import Gate, Interval, Relational
from cachesmith.policies.policy import Policy, unbound
from cachesmith.policies.profile import Profile
from cachesmith.policies.rows import AdamsBashforth, Bdf, Hermite, Heun, Reuse, Taylor
from cachesmith.policies.units import Modules, Stack, Units


@refusing("preset uncached")
def uncached() -> Policy:
    """Compute every step: the reference."""
    return _policy("uncached", Interval(interval=1), Reuse(), Stack())


@refusing("preset fora")
def fora(interval: int = 5, warmup: int = 1) -> Policy:
    """FORA (arXiv 2407.01425): reuse attention and MLP outputs between every `interval`-th step."""
    return _policy("fora", Interval(interval=interval, warmup=warmup), Reuse())


@refusing("preset taylorseer")
def taylorseer(interval: int = 5, order: int = 2, warmup: int = 2) -> Policy:
    """TaylorSeer (arXiv 2503.06923): Taylor forecast of attention and MLP outputs."""
    return _policy("taylorseer", Interval(interval=interval, warmup=warmup), Taylor(order=order))


@refusing("preset taylorseer-lite")
def taylorseer_lite(interval: int = 5, order: int = 2, warmup: int = 2) -> Policy:
    """TaylorSeer-Lite (arXiv 2503.06923, authors' code): the same forecast for the whole stack only."""
    return _policy(
        "taylorseer-lite", Interval(interval=interval, warmup=warmup), Taylor(order=order), Stack()
    )


@refusing("preset rfc")
def rfc(tau: float = 0.3, order: int = 2, warmup: int = 2) -> Policy:
    """RFC (arXiv 2602.19506): input error decides when, input change how far, Taylor the direction."""
    gate = Relational(thresholds=(tau,), order=order, warmup=warmup)
    forecaster = Forecaster(rows=Taylor(order=order), magnitude=Observed())
    return unbound(Profile(units=Modules(), gate=gate, forecaster=forecaster), name="rfc")


@refusing("preset hicache")
def hicache(interval: int = 5, order: int = 2, contraction: float = 0.5, warmup: int = 2) -> Policy:
    """HiCache (arXiv 2508.16984): contracted Hermite polynomials in place of Taylor's monomials.

    0.5 is the contraction where the released code is not told one; its FLUX scripts use 0.6 and 0.7, FreqCa 0.71.
    """
    row = Hermite(order=order, contraction=contraction)
    return _policy("hicache", Interval(interval=interval, warmup=warmup), row)


@refusing("preset ab-cache")
def ab_cache(interval: int = 5, order: int = 2, warmup: int = 2) -> Policy:
    """AB-Cache (arXiv 2504.10540): Adams-Bashforth of order 2 or 3 on the slopes between computed outputs."""
    row = AdamsBashforth.model_validate({"order": order})
    return _policy("ab-cache", Interval(interval=interval, warmup=warmup), row)


@refusing("preset heun")
def heun(interval: int = 5, warmup: int = 2) -> Policy:
    """Heun's rule of HyCa's pool (arXiv 2510.04188); FoCa (arXiv 2508.16211) corrects with it."""
    return _policy("heun", Interval(interval=interval, warmup=warmup), Heun())


@refusing("preset bdf")
def bdf(interval: int = 5, warmup: int = 2) -> Policy:
    """BDF2 of HyCa's pool (arXiv 2510.04188); FoCa (arXiv 2508.16211) predicts with it."""
    return _policy("bdf", Interval(interval=interval, warmup=warmup), Bdf())


SOLVER_PRESETS: dict[str, Callable[..., Policy]] = {
    "uncached": uncached,
    "fora": fora,
    "taylorseer": taylorseer,
    "taylorseer-lite": taylorseer_lite,
    "rfc": rfc,
    "hicache": hicache,
    "ab-cache": ab_cache,
    "heun": heun,
    "bdf": bdf,
}


def _policy(name: str, gate: Gate, row: Row, units: Units | None = None) -> Policy:
    profile = Profile(units=units or Modules(), gate=gate, forecaster=Forecaster(rows=row))
    return unbound(profile, name=name)
