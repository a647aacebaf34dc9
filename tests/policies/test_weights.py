"""Weights of past outputs: laws that hold for any times, and references written out plainly."""

from itertools import pairwise
from math import factorial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cachesmith.policies import AdamsBashforth, Bdf, Ema, Foca, Hermite, Heun, Lagrange, Reuse, Taylor
from cachesmith.policies.rows import forecast_weights
from cachesmith.policies.weights import hermite

ROWS: list[Any] = [
    Reuse(),
    *(Taylor(order=order) for order in (1, 2, 3, 4)),
    *(Lagrange(order=order) for order in (1, 2, 3, 4)),
    *(Hermite(order=order, contraction=0.6) for order in (1, 2, 3)),
    AdamsBashforth(order=2),
    AdamsBashforth(order=3),
    Heun(),
    Bdf(),
    Ema(beta=0.9, taps=4),
    Foca(),
]
LINEAR = [row for row in ROWS if not isinstance(row, Reuse | Hermite | Ema)]

gaps = st.lists(st.floats(0.5, 4), min_size=1, max_size=6)


def schedule(sizes: list[float]) -> tuple[list[float], float]:
    """Times of past outputs, newest first, and the time now: ascending like steps."""
    times = np.cumsum([0.0, *sizes]).tolist()
    return times[-2::-1], times[-1]


def forecast(row: Any, past: list[float], now: float, function: Any) -> float:
    weights = forecast_weights(row, past, now)
    return float(sum(w * function(t) for w, t in zip(weights, past, strict=False)))


@given(st.sampled_from(ROWS), gaps)
def test_weights_sum_to_one(row: Any, sizes: list[float]) -> None:
    past, now = schedule(sizes)
    weights = forecast_weights(row, past, now)
    assert len(weights) == min(len(past), row.taps)
    assert sum(weights) == pytest.approx(1, abs=1e-6 * sum(map(abs, weights)))


@given(st.sampled_from(LINEAR), gaps.filter(lambda g: len(g) > 1))
def test_lines_are_exact(row: Any, sizes: list[float]) -> None:
    past, now = schedule(sizes)
    got = forecast(row, past, now, lambda t: 3 * t - 2)
    scale = sum(map(abs, forecast_weights(row, past, now))) * (1 + 3 * now)
    assert got == pytest.approx(3 * now - 2, abs=1e-9 * scale)


@given(
    st.integers(1, 4), gaps.filter(lambda g: len(g) > 1), st.lists(st.floats(-3, 3), min_size=5, max_size=5)
)
def test_lagrange_is_exact_on_polynomials_for_any_spacing(
    order: int, sizes: list[float], c: list[float]
) -> None:
    past, now = schedule(sizes)
    degree = min(order, len(past) - 1)

    def polynomial(t: float) -> float:
        return sum(c[i] * (t / 10) ** i for i in range(degree + 1))

    row = Lagrange(order=order)
    scale = sum(map(abs, forecast_weights(row, past, now)))
    assert forecast(row, past, now, polynomial) == pytest.approx(polynomial(now), abs=1e-8 * scale * 10)


@pytest.mark.parametrize(
    ("row", "degree"),
    [
        (Reuse(), 0),
        (Taylor(order=1), 1),
        (Taylor(order=2), 1),
        (Taylor(order=3), 1),
        (Lagrange(order=1), 1),
        (Lagrange(order=2), 2),
        (Lagrange(order=3), 3),
        (Hermite(order=2), 0),
        (Ema(), 0),
        (AdamsBashforth(order=2), 1),
        (AdamsBashforth(order=3), 1),
        (Heun(), 1),
        (Bdf(), 1),
        (Foca(), 1),
    ],
)
def test_highest_exact_degree_on_even_times(row: Any, degree: int) -> None:
    """What each method reproduces when every third step is computed. Backward differences of a parabola are off by
    half a gap, which is why Taylor stays at one however high its order."""
    past, now = [9.0, 6.0, 3.0, 0.0], 11.0

    def exact(power: int) -> bool:
        return abs(forecast(row, past, now, lambda t: t**power) - now**power) < 1e-6 * now**power

    assert next(p for p in range(6) if not exact(p)) == degree + 1


@given(st.sampled_from(ROWS), gaps, st.floats(-50, 50), st.sampled_from([-4.0, -0.5, 0.25, 8.0]))
def test_time_may_be_shifted_and_scaled(row: Any, sizes: list[float], shift: float, scale: float) -> None:
    past, now = schedule(sizes)
    if isinstance(row, Hermite):
        scale = 1.0  # its contraction has the unit of time
    moved = forecast_weights(row, [scale * (t + shift) for t in past], scale * (now + shift))
    weights = forecast_weights(row, past, now)
    assert moved == pytest.approx(weights, abs=1e-6 * sum(map(abs, weights)))


class TaylorSeer:
    """The authors' recursion on tensors: `derivative_approximation` and `taylor_formula`."""

    def __init__(self, order: int):
        self.order, self.last = order, 0.0
        self.terms: dict[int, torch.Tensor] = {}

    def update(self, feature: torch.Tensor, step: float) -> None:
        updated = {0: feature}
        distance = step - self.last
        for i in range(self.order):
            if i in self.terms:
                updated[i + 1] = (updated[i] - self.terms[i]) / distance
        self.last, self.terms = step, updated

    def forecast(self, step: float) -> torch.Tensor:
        distance = step - self.last
        terms = [term * distance**i / factorial(i) for i, term in self.terms.items()]
        return torch.stack(terms).sum(0)


@given(st.integers(1, 4), gaps)
def test_taylor_is_taylorseer(order: int, sizes: list[float]) -> None:
    past, now = schedule(sizes)
    features = torch.randn(len(past), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reference = TaylorSeer(order)
    for t, feature in zip(reversed(past), features.flip(0), strict=True):
        reference.update(feature, t)
    weights = forecast_weights(Taylor(order=order), past, now)
    got = sum(w * f for w, f in zip(weights, features, strict=False))
    scale = sum(map(abs, weights))
    torch.testing.assert_close(got, reference.forecast(now), rtol=0, atol=1e-9 * scale)


@given(st.sampled_from(ROWS), gaps, st.integers(0, 5))
def test_of_two_outputs_at_one_time_the_older_weighs_nothing(row: Any, sizes: list[float], at: int) -> None:
    past, now = schedule(sizes)
    at = min(at, len(past) - 1)
    doubled = [*past[: at + 1], past[at], *past[at + 1 :]]
    weights = forecast_weights(row, doubled, now)
    assert all(np.isfinite(weights)) and sum(weights) == pytest.approx(1, abs=1e-6 * sum(map(abs, weights)))
    if at + 1 < len(weights):
        assert weights[at + 1] == 0
    assert all(b < a for a, b in pairwise(past))


def test_hermite_polynomials() -> None:
    x = np.linspace(-1, 1, 5)
    for order, expected in enumerate([np.ones(5), 2 * x, 4 * x**2 - 2, 8 * x**3 - 12 * x]):
        assert [hermite(order, v) for v in x] == pytest.approx(expected)


@given(st.floats(0.05, 0.95), st.lists(st.floats(-3, 3), min_size=1, max_size=8))
def test_ema_is_the_printed_recursion_corrected_for_its_start(beta: float, outputs: list[float]) -> None:
    state = 0.0
    for output in outputs:
        state = beta * state + (1 - beta) * output
    past = [float(t) for t in range(len(outputs))][::-1]
    weights = forecast_weights(Ema(beta=beta, taps=8), past, 20.0)
    got = sum(w * f for w, f in zip(weights, reversed(outputs), strict=True))
    assert got == pytest.approx(state / (1 - beta ** len(outputs)), abs=1e-9)


@given(gaps)
def test_heun_on_cached_values_is_taylors_second_order(sizes: list[float]) -> None:
    past, now = schedule(sizes)
    weights = forecast_weights(Taylor(order=2), past, now)
    assert forecast_weights(Heun(), past, now) == pytest.approx(weights, abs=1e-9 * sum(map(abs, weights)))


@given(gaps)
def test_foca_is_heun_on_the_slope_of_the_bdf_forecast(sizes: list[float]) -> None:
    """Eq. 8 written out: F0 + k/2 (f0 + (P - F0) / k)."""
    past, now = schedule(sizes)
    features = np.random.default_rng(0).normal(size=(len(past), 4))
    k = now - past[0]
    slope = (features[0] - features[1]) / (past[0] - past[1]) if len(past) > 1 else 0 * features[0]
    predicted = sum(w * f for w, f in zip(forecast_weights(Bdf(), past, now), features, strict=False))
    expected = features[0] + k / 2 * (slope + (predicted - features[0]) / k)
    weights = forecast_weights(Foca(), past, now)
    got = sum(w * f for w, f in zip(weights, features, strict=False))
    np.testing.assert_allclose(got, expected, atol=1e-8 * sum(map(abs, weights)) * 10)
