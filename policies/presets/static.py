"""Presets of published methods that settle their schedule before the loop, or bring a forecaster of their own."""

from collections.abc import Callable, Collection, Sequence

from cachesmith.policies.errors import PolicyError, refusing
from cachesmith.policies.forecaster import Band, Forecaster
from cachesmith.policies.gate import Fixed, Gate, Interval
from cachesmith.policies.policy import Policy, unbound
from cachesmith.policies.presets.magcache import magcache_mask
from cachesmith.policies.profile import Profile
from cachesmith.policies.rows import Foca, Hermite, Reuse
from cachesmith.policies.units import Modules, Stack, Units


@refusing("preset foca")
def foca(interval: int = 5, warmup: int = 2) -> Policy:
    """FoCa (arXiv 2508.16211): BDF2 forecast of attention and MLP outputs, corrected by Heun's rule."""
    return _policy("foca", Interval(interval=interval, warmup=warmup), Forecaster(rows=Foca()), Modules())


@refusing("preset freqca")
def freqca(
    interval: int = 5,
    cutoff: float = 0.1,
    order: int = 2,
    contraction: float = 0.71,
    warmup: int = 2,
    rows: int = 0,
    columns: int = 0,
) -> Policy:
    """FreqCa (arXiv 2510.08669): of the stack's residual, reuse low frequencies and forecast high ones (Hermite).

    rows, columns: of the picture's tokens, for the cosine transform; without both all tokens count as one row.
    """
    band = Band(cutoff=cutoff, grid=(rows, columns) if rows or columns else None)
    forecaster = Forecaster(rows=Hermite(order=order, contraction=contraction), band=band)
    return _policy("freqca", Interval(interval=interval, warmup=warmup), forecaster, Stack())


@refusing("preset magcache")
def magcache(
    ratios: Sequence[float] = (),
    threshold: float = 0.24,
    max_skips: int = 5,
    retention: float = 0.1,
    protected: Collection[int] = (),
) -> Policy:
    """MagCache (arXiv 2506.09045): reuse the stack's residual on a schedule from measured magnitude ratios.

    The arguments are those of `magcache_mask`. Raises `PolicyError` without ratios: they belong to a model.
    """
    if len(ratios) == 0:
        raise PolicyError(
            "preset magcache needs the magnitude ratios of a model, one for each step: measure them with "
            "`cachesmith fit MODEL --method magcache`, or pass ratios= in Python"
        )
    mask = magcache_mask(ratios, threshold, max_skips, retention, protected)
    return _policy("magcache", Fixed(mask=mask), Forecaster(rows=Reuse()), Stack())


def _policy(name: str, gate: Gate, forecaster: Forecaster, units: Units) -> Policy:
    return unbound(Profile(units=units, gate=gate, forecaster=forecaster), name=name)


STATIC_PRESETS: dict[str, Callable[..., Policy]] = {
    "foca": foca,
    "freqca": freqca,
}

MEASURED: dict[str, Callable[..., Policy]] = {"magcache": magcache}
"""Presets that need numbers measured on a model, which a command line cannot give."""
