"""Weights of past outputs: pure functions of times.

Every function takes `past`, the times of the newest computed outputs (newest first, at least one), and `now`; it
returns one weight per entry of `past` it uses. Times may run in either direction and need not be evenly spaced; of two
outputs at the same time, as second-order samplers make them, the older weighs nothing. All rows but `Fitted` sum to
one, so a constant output is forecast exactly. With too little history the order drops.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from math import factorial, prod
from typing import assert_never

from cachesmith.policies.forecaster import (
    AdamsBashforth,
    Bdf,
    ClosedRow,
    Ema,
    Foca,
    Hermite,
    Heun,
    Lagrange,
    Reuse,
    Taylor,
)

Times = Sequence[float]
Weights = tuple[float, ...]


def taps(row: ClosedRow) -> int:
    """Number of past outputs that `row` reads at full order."""
    match row:
        case Reuse():
            return 1
        case Taylor(order=order) | Lagrange(order=order) | Hermite(order=order) | AdamsBashforth(order=order):
            return order + 1
        case Heun() | Bdf() | Foca():
            return 3
        case Ema(taps=taps):
            return taps
        case _:
            assert_never(row)


def forecast_weights(row: ClosedRow, past: Times, now: float) -> Weights:
    """Weights of the forecast at `now` from the outputs at `past`."""
    return _weights(row, tuple(past[: taps(row)]), now)


@lru_cache(maxsize=4096)
def _weights(row: ClosedRow, past: tuple[float, ...], now: float) -> Weights:
    distinct = tuple(dict.fromkeys(past))
    weight = dict(zip(distinct, _distinct(row, distinct, now), strict=False))
    return tuple(weight.get(t, 0.0) if t not in past[:j] else 0.0 for j, t in enumerate(past))


def _distinct(row: ClosedRow, past: Times, now: float) -> Weights:
    match row:
        case Reuse():
            return (1.0,)
        case Lagrange():
            return lagrange(past, now)
        case Taylor():
            return _series(past, now, lambda order, k: k**order / factorial(order))
        case Hermite(contraction=c):
            return _series(past, now, lambda order, k: c**order * hermite(order, c * k) / factorial(order))
        case AdamsBashforth() | Heun() | Bdf():
            return _multistep(row, past, now)
        case Ema(beta=beta):
            return _decaying(beta, len(past))
        case Foca():
            return _foca(past, now)
        case _:
            assert_never(row)


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


def _series(past: Times, now: float, coefficient: Callable[[int, float], float]) -> Weights:
    """TaylorSeer, eq. 3-5: D(i+1) = (D(i) - D(i) one output earlier) / latest gap; forecast = sum c_i D(i)."""
    size = len(past)
    level = [_unit(j, size) for j in range(size)]
    total = level[0]
    for order in range(1, size):
        gaps = [a - b for a, b in pairwise(past)]
        level = [
            _scale(_add(new, old, -1.0), 1 / gap)
            for (new, old), gap in zip(pairwise(level), gaps, strict=False)
        ]
        total = _add(total, level[0], coefficient(order, now - past[0]))
    return total


def _multistep(row: AdamsBashforth | Heun | Bdf, past: Times, now: float) -> Weights:
    """Combine F0 with slopes between computed outputs; formulas: HyCa, section 3 (pool of solvers)."""
    size, k = len(past), now - past[0]
    slopes = [
        _scale(_add(_unit(j, size), _unit(j + 1, size), -1.0), 1 / (past[j] - past[j + 1]))
        for j in range(size - 1)
    ]
    if not slopes:
        return (1.0,)
    predicted = slopes[0]
    if len(slopes) > 1:
        predicted = _add(slopes[0], _add(slopes[0], slopes[1], -1.0), k / (past[0] - past[1]))
    match row:
        case AdamsBashforth():
            return _add(_unit(0, size), _adams_bashforth(slopes), k)
        case Heun():
            return _add(_unit(0, size), _add(slopes[0], predicted), k / 2)
        case Bdf():
            ratio = k / (past[0] - past[1])
            scale = 1 + 2 * ratio
            start = _add(
                _scale(_unit(0, size), (1 + ratio) ** 2 / scale), _unit(1, size), -(ratio**2) / scale
            )
            return _add(start, predicted, k * (1 + ratio) / scale)


def _decaying(beta: float, size: int) -> Weights:
    """SVD-Cache's average, cut off and normalised: beta^j / sum_i beta^i, the newest first."""
    total = sum(beta**j for j in range(size))
    return tuple(beta**j / total for j in range(size))


def _foca(past: Times, now: float) -> Weights:
    """FoCa, eq. 7 and 8: P by BDF2, then F = F0 + k/2 (f0 + f) with f0 the last slope between computed outputs.

    Put into eq. 6, eq. 7 gives back the slope it was made with, and the corrector would do nothing; so f is the slope
    from F0 to P here, which makes F the mean of P and the line through the last two computed outputs.
    """
    line = _distinct(Taylor(order=1), past[:2], now)
    forecast = _distinct(Bdf(), past, now)
    padded = (*line, *(0.0,) * (len(forecast) - len(line)))
    return _scale(_add(padded, forecast), 0.5)


def _adams_bashforth(slopes: Sequence[Weights]) -> Weights:
    coefficients = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12)}[len(slopes)]
    return tuple(
        sum(c * s[j] for c, s in zip(coefficients, slopes, strict=True)) for j in range(len(slopes[0]))
    )


def _unit(index: int, size: int) -> Weights:
    return tuple(1.0 if j == index else 0.0 for j in range(size))


def _add(a: Weights, b: Weights, factor: float = 1.0) -> Weights:
    return tuple(x + factor * y for x, y in zip(a, b, strict=True))


def _scale(a: Weights, factor: float) -> Weights:
    return tuple(factor * x for x in a)
