"""MagCache's schedule (arXiv 2506.09045): settled before the loop, because its decision reads no tensor."""

from collections.abc import Collection, Sequence
from math import isfinite

from cachesmith.policies.errors import PolicyError


def magcache_mask(
    ratios: Sequence[float],
    threshold: float = 0.24,
    max_skips: int = 5,
    retention: float = 0.1,
    protected: Collection[int] = (),
) -> str:
    """Return the mask of a run with len(ratios) steps; the defaults are those published for FLUX.1-dev.

    ratios: mean over tokens of |r_t| / |r_(t-1)| for every step t, r being what the whole stack adds to its input;
    the first step has no predecessor and its ratio is not read. Since the last computed step the product of the
    ratios says how the residual should have grown; a step is skipped while the summed |1 - product| is at most
    `threshold` and at most `max_skips` steps were skipped in a row. The first `retention` of the steps, step 0 and the
    `protected` ones are always computed. Raises `PolicyError` for ratios that are not positive numbers.
    """
    wrong = [r for r in ratios[1:] if not (isfinite(r) and r > 0)]
    if wrong or len(ratios) == 0:
        raise PolicyError(
            f"magnitude ratios must be positive, one for each step, got {wrong[:3]}; measure them again"
        )
    kept = max(1, int(retention * len(ratios) + 0.5))
    letters, product, error, skips = "C" * min(kept, len(ratios)), 1.0, 0.0, 0
    for step in range(kept, len(ratios)):
        product *= ratios[step]
        error += abs(1 - product)
        skips += 1
        if error <= threshold and skips <= max_skips and step not in protected:
            letters += "F"
        else:
            letters += "C"
            product, error, skips = 1.0, 0.0, 0
    return letters


def resample_ratios(ratios: Sequence[float], steps: int) -> tuple[float, ...]:
    """Carry ratios to another number of steps: the nearest one by place in the run, as the authors' code does."""
    if steps < 1 or len(ratios) == 0:
        raise PolicyError(f"there are {len(ratios)} ratios for {steps} steps; give at least one of each")
    stretch = (len(ratios) - 1) / max(1, steps - 1)
    return tuple(ratios[round(step * stretch)] for step in range(steps)) if steps > 1 else (ratios[-1],)
