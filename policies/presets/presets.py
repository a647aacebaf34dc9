"""The published methods as policies bound to no model: for comparison, and as starting points of a search."""

import inspect
from collections.abc import Callable

from cachesmith.policies.document import Profile
from cachesmith.policies.errors import PolicyError, refusing
from cachesmith.policies.forecaster import Forecaster, Observed, Row
from cachesmith.policies.gate import Gate, Interval, Relational
from cachesmith.policies.policy import Policy, unbound
from cachesmith.policies.presets.fitted import refuse_fitted
from cachesmith.policies.presets.gates import confidence, dbcache, easycache, fbcache, speca, teacache
from cachesmith.policies.presets.static import foca, freqca, magcache
from cachesmith.policies.presets.tokens import clusca, duca, toca
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


PRESETS: dict[str, Callable[..., Policy]] = {
    "uncached": uncached,
    "fora": fora,
    "taylorseer": taylorseer,
    "taylorseer-lite": taylorseer_lite,
    "rfc": rfc,
    "hicache": hicache,
    "ab-cache": ab_cache,
    "heun": heun,
    "bdf": bdf,
    "foca": foca,
    "freqca": freqca,
    "toca": toca,
    "duca": duca,
    "clusca": clusca,
    "teacache": teacache,
    "fbcache": fbcache,
    "dbcache": dbcache,
    "confidence": confidence,
    "speca": speca,
    "easycache": easycache,
}
"""Name -> preset; each may be called without options."""

MEASURED: dict[str, Callable[..., Policy]] = {"magcache": magcache}
"""Presets that need numbers measured on a model, which a command line cannot give."""


def preset(name: str, /, **options: object) -> Policy:
    """Return the preset with these options; an unknown name or option is refused with the known ones."""
    refuse_fitted(name)
    presets = PRESETS | MEASURED
    if name not in presets:
        raise PolicyError(f"there is no preset {name!r}; choose from {', '.join(presets)}")
    known = inspect.signature(presets[name]).parameters
    for option in options:
        if option not in known:
            raise PolicyError(
                f"preset {name} has no option {option!r}; it takes {', '.join(known) or 'none'}"
            )
    return presets[name](**options)


def parse_preset(text: str) -> Policy:
    """Return the preset written as on the command line, such as `taylorseer:interval=6,order=1`."""
    name, _, listed = text.partition(":")
    options: dict[str, object] = {}
    for item in listed.split(",") if listed else ():
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or key in options:
            raise PolicyError(
                f"cannot read {item!r} in {text!r}; write each option once, as NAME:KEY=VALUE,KEY=VALUE"
            )
        options[key] = _number(value, text)
    return preset(name.strip(), **options)


def _number(value: str, text: str) -> int | float:
    for read in (int, float):
        try:
            return read(value)
        except ValueError:
            continue
    raise PolicyError(
        f"cannot read {value[:40]!r} in {text[:80]!r} as a number; write, for example, interval=6"
    )


def _policy(name: str, gate: Gate, row: Row, units: Units | None = None) -> Policy:
    profile = Profile(units=units or Modules(), gate=gate, forecaster=Forecaster(rows=row))
    return unbound(profile, name=name)
