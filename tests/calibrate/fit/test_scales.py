"""Fits recover what is planted, and planned schedules are the best there are."""

from itertools import combinations

import pytest
import torch

from cachesmith.calibrate.fit.scales import (
    fit_correction,
    fit_scale,
    forecast_costs,
    plan_schedules,
    taylor_weights,
)
from cachesmith.calibrate.record.recorder import Movements
from cachesmith.policies import Taylor
from cachesmith.policies.rows import forecast_weights
from cachesmith.policies.schedule import from_steps

STEPS = 8


def movements(scale_at: dict[int, float], noise: float = 0.0) -> Movements:
    generator = torch.Generator().manual_seed(0)
    entries = []
    for step, scale in scale_at.items():
        for k in (1, 2):
            moved = torch.rand(5, generator=generator) + 0.5
            made = scale * moved * (1 + noise * torch.randn(5, generator=generator))
            entries.append((step, k, moved, made))
    return Movements(entries)


def test_scale_is_recovered_per_time_bin() -> None:
    fit = fit_scale(movements({step: 2.0 if step < 4 else 5.0 for step in range(1, STEPS)}), STEPS, 2)
    assert fit.scales.tolist() == pytest.approx([2.0, 5.0], rel=1e-6)
    assert fit.r2 == pytest.approx(1.0, abs=1e-6)


def test_a_bin_without_data_takes_the_overall_scale() -> None:
    fit = fit_scale(movements({6: 3.0}), STEPS, 4)
    assert fit.scales.tolist() == pytest.approx([3.0] * 4, rel=1e-6)


def test_noise_shows_in_spread_and_r2() -> None:
    clean, noisy = (
        fit_scale(movements(dict.fromkeys(range(1, STEPS), 2.0), n), STEPS, 1) for n in (0.0, 0.3)
    )
    assert noisy.spread > 0.1 > clean.spread
    assert noisy.r2 < clean.r2


def test_correction_is_the_growth_of_the_ratio() -> None:
    grown = movements({step: 2.0**step for step in range(1, STEPS)})
    # over one step the ratio doubles, over two it quadruples; both distances are averaged by least squares
    assert 2.0 <= float(fit_correction(grown, STEPS, 1)[0]) <= 4.0
    constant = movements(dict.fromkeys(range(1, STEPS), 2.0))
    assert fit_correction(constant, STEPS, 2).tolist() == pytest.approx([1.0, 1.0], rel=1e-5)


def test_runs_of_different_batches_count_alike() -> None:
    """As with a number of samples that the batch does not divide; every run counts, not the last alone."""
    first = movements({step: 2.0**step for step in range(1, STEPS)})
    short = [(step, k, moved[:2], made[:2] ** 0 * moved[:2]) for step, k, moved, made in first.entries]
    both = Movements([*first.entries, *short])
    assert fit_scale(both, STEPS, 2).scales.shape == (2,)
    grown, still, mixed = (float(fit_correction(m, STEPS, 1)[0]) for m in (first, Movements(short), both))
    assert still == pytest.approx(1.0) and still < mixed < grown


def taylor_cost(features: torch.Tensor, computed: list[int], order: int) -> float:
    """Summed error of Taylor's forecasts from the last computed steps, written the long way."""
    total = 0.0
    for step in set(range(len(features))) - set(computed):
        past = [c for c in reversed(computed) if c < step][: order + 1]
        weights = forecast_weights(Taylor(order=order), [float(c) for c in past], float(step))
        forecast = torch.stack([w * features[c] for w, c in zip(weights, past, strict=True)]).sum(0)
        total += float((features[step] - forecast).norm(dim=1).mean())
    return total


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("forced", [1, 3])
def test_planned_schedules_for_taylor_are_optimal(order: int, forced: int) -> None:
    features = torch.randn(STEPS, 2, 5, generator=torch.Generator().manual_seed(2)).cumsum(0).cumsum(0)
    cost = forecast_costs(features, [float(i) for i in range(STEPS)], order)
    for budget, mask in plan_schedules(cost, [3, 4, 6], forced).items():
        first = list(range(forced))
        others = [[*first, *rest] for rest in combinations(range(forced, STEPS), budget - forced)]
        best = min(others, key=lambda computed: taylor_cost(features, computed, order))
        assert mask == from_steps(set(best), STEPS)


@pytest.mark.parametrize("past", [[0.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 2.0, 5.0], [1.0, 4.0], [3.0, 3.0]])
def test_taylor_weights_are_those_of_the_runtime(past: list[float]) -> None:
    now = [6.0, 9.0]
    got = taylor_weights(torch.tensor([past], dtype=torch.float64), torch.tensor(now, dtype=torch.float64))
    for weights, time in zip(got[0], now, strict=True):
        known = list(dict.fromkeys(reversed(past)))
        expected = forecast_weights(Taylor(order=len(past) - 1), known, time)
        assert [
            sum(w.item() for w, t in zip(weights, past, strict=True) if t == node) for node in known
        ] == pytest.approx(list(expected))


def line_cost(features: torch.Tensor, computed: list[int]) -> float:
    """Summed error of forecasting by a line through the last two computed steps, written the long way."""
    total = 0.0
    for step in range(len(features)):
        if step in computed:
            continue
        past = [c for c in computed if c < step][-2:]
        forecast = features[past[-1]]
        if len(past) == 2:
            forecast = forecast + (step - past[1]) * (features[past[1]] - features[past[0]]) / (
                past[1] - past[0]
            )
        total += float((features[step] - forecast).norm(dim=1).mean())
    return total


def test_planned_schedules_are_optimal() -> None:
    features = torch.randn(STEPS, 3, 6, generator=torch.Generator().manual_seed(1)).cumsum(0)
    planned = plan_schedules(forecast_costs(features, [float(i) for i in range(STEPS)]), [1, 2, 3, 5])
    for budget, mask in planned.items():
        others = [[0, *rest] for rest in combinations(range(1, STEPS), budget - 1)]
        best = min(others, key=lambda computed: line_cost(features, computed))
        assert mask == from_steps(set(best), STEPS)


def test_a_line_costs_nothing_on_linear_features() -> None:
    ramp = torch.arange(STEPS, dtype=torch.float32)[:, None, None] * torch.ones(1, 2, 3)
    cost = forecast_costs(ramp, [float(i) for i in range(STEPS)])
    assert float(cost[0, 1, STEPS]) == pytest.approx(0.0, abs=1e-5)
