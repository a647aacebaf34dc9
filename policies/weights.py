"""Weights of past outputs from their times: the formulas that rows are made of.

`past` are the distinct times of the newest computed outputs, newest first; weights come in their order. A slope is a
row of weights, too: of the difference between two outputs over the time between them.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

Times = Sequence[float]
Weights = tuple[float, ...]


def lagrange(past: Times, now: float) -> Weights:
    """Weights of the polynomial through the outputs at `past`, read at `now`: exact up to degree len(past) - 1."""
    return tuple(
        prod(((now - other) / (node - other) for j, other in enumerate(past) if j != i), start=1.0)
        for i, node in enumerate(past)
    )


def hermite(order: int, x: float) -> float:
    """Physicists' Hermite polynomial: H0 = 1, H1 = 2x, H(n+1) = 2x H(n) - 2n H(n-1)."""
    before, value = 0.0, 1.0
    for n in range(order):
        before, value = value, 2 * x * value - 2 * n * before
    return value


def series(past: Times, now: float, coefficient: Callable[[int, float], float]) -> Weights:
    """TaylorSeer, eq. 3-5: D(i+1) = (D(i) - D(i) one output earlier) / latest gap; forecast = sum c_i D(i)."""
    size = len(past)
    level = [unit(j, size) for j in range(size)]
    total = level[0]
    for order in range(1, size):
        gaps = [a - b for a, b in pairwise(past)]
        level = [
            scale(add(new, old, -1.0), 1 / gap)
            for (new, old), gap in zip(pairwise(level), gaps, strict=False)
        ]
        total = add(total, level[0], coefficient(order, now - past[0]))
    return total


def slopes(past: Times) -> list[Weights]:
    """The slopes between neighbouring outputs, newest first."""
    size = len(past)
    return [
        scale(add(unit(j, size), unit(j + 1, size), -1.0), 1 / (past[j] - past[j + 1]))
        for j in range(size - 1)
    ]


def predicted_slope(past: Times, now: float) -> Weights:
    """The slope at `now` by a line through the last two slopes; the last slope where there is one only."""
    newest, *older = slopes(past)
    if not older:
        return newest
    return add(newest, add(newest, older[0], -1.0), (now - past[0]) / (past[0] - past[1]))


def adams_bashforth(steps: Sequence[Weights]) -> Weights:
    """The mean slope of Adams and Bashforth's rule, of order len(steps) at most 3."""
    coefficients = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12)}[len(steps)]
    return tuple(
        sum(c * s[j] for c, s in zip(coefficients, steps, strict=True)) for j in range(len(steps[0]))
    )


def bdf2(past: Times, now: float) -> Weights:
    """Second-order backward differentiation on uneven steps, with the predicted slope at `now`."""
    size, k = len(past), now - past[0]
    ratio = k / (past[0] - past[1])
    whole = 1 + 2 * ratio
    start = add(scale(unit(0, size), (1 + ratio) ** 2 / whole), unit(1, size), -(ratio**2) / whole)
    return add(start, predicted_slope(past, now), k * (1 + ratio) / whole)


def unit(index: int, size: int) -> Weights:
    """All of one output."""
    return tuple(1.0 if j == index else 0.0 for j in range(size))


def add(a: Weights, b: Weights, factor: float = 1.0) -> Weights:
    """a + factor b."""
    return tuple(x + factor * y for x, y in zip(a, b, strict=True))


def scale(a: Weights, factor: float) -> Weights:
    """factor a."""
    return tuple(factor * x for x in a)
