"""Which threshold keeps a schedule within a budget of full computations."""

from collections.abc import Callable
from math import ldexp

from cachesmith.policies.errors import PolicyError

HALVINGS = 40
LARGEST = 2.0**30
"""A threshold above any error that is measured."""


def threshold_within(computations: Callable[[float], float], budget: float) -> float:
    """Return the smallest threshold, to a relative 1e-6, at which `computations(threshold)` is at most `budget`.

    `computations` should fall as the threshold grows; where it wavers, the budget is kept all the same. Raises
    `PolicyError` when no threshold keeps it.
    """
    fewest = computations(LARGEST)
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
