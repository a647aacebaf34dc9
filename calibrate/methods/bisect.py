"""Set a gate's threshold for a wanted number of computations, in closed loop."""

from collections.abc import Callable
from math import sqrt

from cachesmith.policies import Policy
from cachesmith.sampling.evaluate import Evaluator

RUNS = 12


def threshold_for(
    budget: float,
    make_policy: Callable[[float], Policy],
    evaluator: Evaluator,
    low: float = 1e-3,
    high: float = 10.0,
    *,
    count: int | None = None,
    runs: int = RUNS,
    slack: float = 0.0,
) -> float:
    """Return the threshold whose policy computes nearest to `budget` steps in full, on average over all runs.

    The logarithm is halved between `low` and `high` at most `runs` times, each a sampling run of the evaluator's first
    `count` requests (default: all), on the understanding that a higher threshold computes less; the first one within
    `slack` of the budget is taken. As gates follow the
    most demanding sample of a batch, the result holds for the batch size of the evaluator's renderer. A budget out of
    reach between `low` and `high` gives the nearest that was tried. Raises `ValueError` for bounds out of order.
    """
    if not 0 < low < high:
        raise ValueError(f"the thresholds {low} to {high} cannot be halved; give 0 < low < high")
    tried: list[tuple[float, float]] = []
    for _ in range(runs):
        middle = sqrt(low * high)
        nfc = evaluator(make_policy(middle), count).nfc
        tried.append((abs(nfc - budget), middle))
        if abs(nfc - budget) <= slack:
            break
        low, high = (middle, high) if nfc > budget else (low, middle)
    return min(tried)[1]
