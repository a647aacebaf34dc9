"""The threshold that gives a number of computations: of a schedule from its formula, of a gate in closed loop."""

from collections.abc import Callable
from math import ldexp, sqrt

from cachesmith.policies import Policy, PolicyError
from cachesmith.sampling.evaluate import Evaluator

RUNS = 12
HALVINGS = 40
_LARGEST = 2.0**30
"""A threshold above any error that is measured."""


def threshold_within(computations: Callable[[float], float], budget: float) -> float:
    """Return the smallest threshold, to a relative 1e-6, at which `computations(threshold)` is at most `budget`.

    `computations` should fall as the threshold grows; where it wavers, the budget is kept all the same. Raises
    `PolicyError` when no threshold keeps it.
    """
    fewest = computations(_LARGEST)
    if fewest > budget:
        raise PolicyError(
            f"the schedule computes {fewest:g} steps at least and the budget is {budget:g}; "
            "raise the budget, or allow more skipped steps in a row"
        )
    high = min(t for t in (ldexp(1.0, e) for e in range(-30, 31)) if computations(t) <= budget)
    low = high / 2 if computations(0.0) > budget else 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if computations(middle) <= budget else (middle, high)
    return high


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
