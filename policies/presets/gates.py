"""Published methods whose gate decides while sampling, as policies bound to no model.

Each has one `threshold`, and computes everything at 0. The published values hold for the published models; on another
one, set it for the number of computations you want (`cachesmith.calibrate.methods.threshold.threshold_for`).
"""

from collections.abc import Callable

from cachesmith.policies.errors import refusing
from cachesmith.policies.forecaster import Forecaster
from cachesmith.policies.gate import Distance, DynamicGate, Probe
from cachesmith.policies.policy import Policy, unbound
from cachesmith.policies.profile import Profile
from cachesmith.policies.rows import ClosedRow, Reuse, Taylor
from cachesmith.policies.units import Segments, Stack, Units

IDENTITY = (1.0, 0.0)
FLUX = (498.65, -283.78, 55.855, -3.8202, 0.26423)
"""TeaCache's polynomial for FLUX.1-dev, highest power first."""


@refusing("preset teacache")
def teacache(
    threshold: float = 0.25, polynomial: tuple[float, ...] = IDENTITY, warmup: int = 1, tail: int = 1
) -> Policy:
    """TeaCache (arXiv 2411.19108): reuse the stack until the rescaled change of its modulated input adds up.

    Published: 0.25, 0.4, 0.6 or 0.8 with the polynomial `FLUX` on FLUX.1-dev (28 steps); first and last step computed.
    The polynomial belongs to a model: `cachesmith fit MODEL --method teacache` fits one.
    """
    gate = Distance(threshold=threshold, polynomial=polynomial, warmup=warmup, tail=tail)
    return _preset("teacache", Stack(), gate, Reuse())


@refusing("preset easycache")
def easycache(threshold: float = 0.025, warmup: int = 5, tail: int = 1) -> Policy:
    """EasyCache (arXiv 2507.02860): reuse the stack until the change expected of its output adds up.

    Published: 0.025 on HunyuanVideo, first 5 and last step computed. There x and y are latent and prediction of the
    whole network, here they are what enters and leaves its blocks.
    """
    gate = Distance(signal="input", per="output", threshold=threshold, warmup=warmup, tail=tail)
    return _preset("easycache", Stack(), gate, Reuse())


@refusing("preset fbcache")
def fbcache(threshold: float = 0.08, warmup: int = 1, tail: int = 0) -> Policy:
    """FirstBlockCache (ParaAttention; no arXiv paper): reuse all but the first block while that one's residual stays.

    Published: 0.08 on FLUX.1-dev, 0.06 on HunyuanVideo; no warm-up beyond the first step.
    """
    gate = Probe(threshold=threshold, warmup=warmup, tail=tail)
    return _preset("fbcache", Segments(starts=(0, 1)), gate, Reuse())


@refusing("preset dbcache")
def dbcache(
    threshold: float = 0.08, fn: int = 1, order: int = 1, warmup: int = 8, max_interval: int = 1000
) -> Policy:
    """DBCache with TaylorSeer (cache-dit; the forecast is that of arXiv 2503.06923): the first `fn` blocks decide.

    Published: F8B0, that is fn=8, for models of 19 double blocks or more, 0.08, warm-up of 8 steps, order 1. Its last
    blocks that are always computed (B > 0) are not covered.
    """
    gate = Probe(threshold=threshold, warmup=warmup, max_interval=max_interval)
    return _preset("dbcache", Segments(starts=(0, fn)), gate, Taylor(order=order))


@refusing("preset confidence")
def confidence(threshold: float = 0.1, order: int = 2, warmup: int = 3, max_interval: int = 1000) -> Policy:
    """Confidence-gated Taylor (arXiv 2508.02240): forecast while the first block's own forecast is right.

    The thresholds of the paper are not known to us; this one is a starting point.
    """
    gate = Probe(against="forecast", threshold=threshold, warmup=warmup, max_interval=max_interval)
    return _preset("confidence", Segments(starts=(0, 1)), gate, Taylor(order=order))


@refusing("preset speca")
def speca(
    threshold: float = 0.3,
    decay: float = 0.05,
    floor: float = 0.01,
    order: int = 2,
    at_least: int = 3,
    at_most: int = 8,
    warmup: int = 3,
) -> Policy:
    """SpeCa (arXiv 2509.11628): forecast all but the last block, and verify by that one for the next step.

    `at_least` and `at_most` are the numbers of forecast steps in a row. Published: threshold 0.3, decay 0.05, floor
    0.01, 3 to 8 steps on DiT-XL/2; 7, 0.3, 0.1, 2 to 8 steps on FLUX.1-dev; first 3 steps computed. The authors' code
    averages relative errors of single elements of the hidden state, here the error is that of the last block's
    residual, in relative L2, so thresholds do not carry over; and the last block is computed at every step, where
    the code does so only when it verifies, and its true output is used.
    """
    gate = Probe(
        place="last",
        against="forecast",
        norm="l2",
        threshold=threshold,
        decay=decay,
        floor=floor,
        warmup=warmup,
        min_interval=at_least + 1,
        max_interval=at_most + 1,
    )
    return _preset("speca", Segments(starts=(0, -1)), gate, Taylor(order=order))


def _preset(name: str, units: Units, gate: DynamicGate, row: ClosedRow) -> Policy:
    profile = Profile(units=units, gate=gate, forecaster=Forecaster(rows=row))
    return unbound(profile, name=name)


GATE_PRESETS: dict[str, Callable[..., Policy]] = {
    "teacache": teacache,
    "fbcache": fbcache,
    "dbcache": dbcache,
    "confidence": confidence,
    "speca": speca,
    "easycache": easycache,
}
