"""Rows whose weights follow from the times alone, each with its rule. To add one, write it here and name a preset.

`weights(past, now)` gets the distinct times of the newest computed outputs (newest first, at most `taps`) and returns
one weight for each of them it uses. Times may run in either direction and need not be evenly spaced. All rows sum to
one, so a constant output is forecast exactly. With too little history the order drops.
"""

from functools import lru_cache
from math import factorial
from typing import Literal

from pydantic import Field

from cachesmith.policies.base import Frozen
from cachesmith.policies.weights import (
    Times,
    Weights,
    adams_bashforth,
    add,
    bdf2,
    hermite,
    lagrange,
    predicted_slope,
    scale,
    series,
    slopes,
    unit,
)


class Reuse(Frozen):
    """F = F0 (FORA, arXiv 2407.01425)."""

    kind: Literal["reuse"] = "reuse"

    @property
    def taps(self) -> int:
        """Past outputs read at full order."""
        return 1

    def weights(self, past: Times, now: float) -> Weights:
        """All of the newest output."""
        return (1.0,)


class _Ordered(Frozen):
    """A row of order n reads n + 1 outputs."""

    order: int = Field(default=1, ge=1, le=4)

    @property
    def taps(self) -> int:
        """Past outputs read at full order."""
        return self.order + 1


class Taylor(_Ordered):
    """TaylorSeer's recursion (arXiv 2503.06923): every order divides by the latest gap only."""

    kind: Literal["taylor"] = "taylor"
    order: int = Field(default=1, ge=1, le=4)

    def weights(self, past: Times, now: float) -> Weights:
        """Eq. 3-5: sum_i k^i / i! D(i) with k the distance to F0."""
        return series(past, now, lambda order, k: k**order / factorial(order))


class Lagrange(_Ordered):
    """The polynomial through the last `order + 1` outputs: exact on polynomials for any spacing."""

    kind: Literal["lagrange"] = "lagrange"
    order: int = Field(default=1, ge=1, le=4)

    def weights(self, past: Times, now: float) -> Weights:
        """Lagrange's basis at `now`."""
        return lagrange(past, now)


class Hermite(_Ordered):
    """HiCache (arXiv 2508.16984): contracted Hermite polynomials (physicists') replace Taylor's monomials."""

    kind: Literal["hermite"] = "hermite"
    order: int = Field(default=2, ge=1, le=4)
    contraction: float = Field(default=0.71, gt=0, le=1)

    def weights(self, past: Times, now: float) -> Weights:
        """sum_i c^i H_i(c k) / i! D(i)."""
        c = self.contraction
        return series(past, now, lambda order, k: c**order * hermite(order, c * k) / factorial(order))


class AdamsBashforth(_Ordered):
    """Explicit multistep on the slopes between computed outputs (AB-Cache, arXiv 2504.10540; HyCa's pool)."""

    kind: Literal["adams-bashforth"] = "adams-bashforth"
    order: Literal[2, 3] = 2

    def weights(self, past: Times, now: float) -> Weights:
        """F0 + k times the slopes in Adams-Bashforth's proportions."""
        if len(past) == 1:
            return (1.0,)
        return add(unit(0, len(past)), adams_bashforth(slopes(past)), now - past[0])


class _ThreeTaps(Frozen):
    """A row that reads three outputs."""

    @property
    def taps(self) -> int:
        """Past outputs read at full order."""
        return 3


class Heun(_ThreeTaps):
    """Trapezoid of the last slope and the predicted one: F0 + k/2 (f0 + f) (HyCa's pool, arXiv 2510.04188).

    With cached values alone, f is the slope a line through the last two slopes predicts. That makes Heun's method
    (RK2) and the trapezoidal Adams-Moulton rule (AM2), which differ in how they evaluate f, one and the same, and
    both of them equal to `Taylor(order=2)`: f0 + k (f0 - f1) / gap in the mean with f0 is the second-order series.
    """

    kind: Literal["heun"] = "heun"

    def weights(self, past: Times, now: float) -> Weights:
        """F0 + k/2 (f0 + f)."""
        if len(past) == 1:
            return (1.0,)
        both = add(slopes(past)[0], predicted_slope(past, now))
        return add(unit(0, len(past)), both, (now - past[0]) / 2)


class Bdf(_ThreeTaps):
    """Second-order backward differentiation, slope predicted linearly (HyCa's pool, arXiv 2510.04188)."""

    kind: Literal["bdf"] = "bdf"

    def weights(self, past: Times, now: float) -> Weights:
        """BDF2 on uneven steps."""
        return (1.0,) if len(past) == 1 else bdf2(past, now)


class Foca(_ThreeTaps):
    """FoCa (arXiv 2508.16211): BDF2 forecasts, and Heun's rule draws it half way back to the last slope."""

    kind: Literal["foca"] = "foca"

    def weights(self, past: Times, now: float) -> Weights:
        """Eq. 7 and 8: P by BDF2, then F = F0 + k/2 (f0 + f) with f0 the last slope between computed outputs.

        Put into eq. 6, eq. 7 gives back the slope it was made with, and the corrector would do nothing; so f is the
        slope from F0 to P here, which makes F the mean of P and the line through the last two computed outputs.
        """
        if len(past) == 1:
            return (1.0,)
        line = lagrange(past[:2], now)
        forecast = bdf2(past, now)
        padded = (*line, *(0.0,) * (len(forecast) - len(line)))
        return scale(add(padded, forecast), 0.5)


class Ema(Frozen):
    """Exponential moving average of the last `taps` outputs, newest first w_j = beta^j / sum_i beta^i.

    SVD-Cache (arXiv 2601.07396) prints S <- beta S + (1 - beta) F for the principal part, with memory of all
    computed outputs. Here it is cut off after `taps` of them and normalised, so that a constant output is exact; up
    to that many computed steps it is the printed recursion from S = 0, corrected for its start. It smooths and does
    not extrapolate: the older outputs pull the forecast back in time.
    """

    kind: Literal["ema"] = "ema"
    beta: float = Field(default=0.9, gt=0, lt=1)
    taps: int = Field(default=8, ge=2, le=32)

    def weights(self, past: Times, now: float) -> Weights:
        """beta^j / sum_i beta^i."""
        total = sum(self.beta**j for j in range(len(past)))
        return tuple(self.beta**j / total for j in range(len(past)))


ClosedRow = Reuse | Taylor | Lagrange | Hermite | AdamsBashforth | Heun | Bdf | Ema | Foca
"""Rows whose weights follow from the times alone."""


@lru_cache(maxsize=4096)
def _weights(row: ClosedRow, past: tuple[float, ...], now: float) -> Weights:
    distinct = tuple(dict.fromkeys(past))
    weight = dict(zip(distinct, row.weights(distinct, now), strict=False))
    return tuple(weight.get(t, 0.0) if t not in past[:j] else 0.0 for j, t in enumerate(past))


def forecast_weights(row: ClosedRow, past: Times, now: float) -> Weights:
    """Weights of the forecast at `now` from the outputs at `past`, newest first, at least one.

    Of two outputs at the same time, as second-order samplers make them, the older weighs nothing.
    """
    return _weights(row, tuple(past[: row.taps]), now)
