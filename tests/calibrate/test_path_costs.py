"""What uncached paths say that segments cost, held against walking them."""

from itertools import combinations
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.batch import Uncached
from cachesmith.calibrate.schedules.path_costs import path_costs, step_levels, tilted, told_by_paths
from cachesmith.calibrate.schedules.search import RunShape, shaped

STEPS = 6


def world() -> tuple[Tensor, Tensor]:
    """Random paths [samples, points, size], and falling noise levels."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.rand(STEPS, generator=generator, dtype=torch.float64).sort(descending=True).values
    path = torch.randn(3, STEPS + 1, 5, generator=generator, dtype=torch.float64)
    return path, torch.cat([levels + 0.1, torch.zeros(1)])


def moves(path: Tensor) -> Tensor:
    return Uncached([], path, torch.zeros(len(path), 1)).moves(torch.ones(path.shape[1]))


def walked(path: Tensor, levels: Tensor, before: int, computed: int, end: int) -> float:
    """Squared error at the end of a segment that is walked by the line through two velocities."""
    lengths = levels.diff()
    velocity = path.diff(dim=1) / lengths[:, None]
    latents = path[:, computed + 1]
    for step in range(computed + 1, end):
        t = (step - computed) / (computed - before) if before < computed else 0.0
        line = velocity[:, computed] + t * (velocity[:, computed] - velocity[:, before])
        latents = latents + lengths[step] * line
    return float((latents - path[:, end]).square().sum(1).mean())


def test_a_segment_costs_what_walking_it_by_a_line_is_off_by() -> None:
    path, levels = world()
    cost = path_costs(moves(path), levels)
    for computed in range(STEPS):
        for before in range(computed + 1):
            for end in range(computed + 1, STEPS + 1):
                expected = walked(path, levels, before, computed, end)
                assert float(cost[before, computed, end]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert torch.isinf(cost[2, 1]).all() and torch.isinf(cost[0, 3, :4]).all()


def test_velocities_on_a_line_cost_nothing_once_two_are_known() -> None:
    levels = torch.linspace(1, 0, STEPS + 1, dtype=torch.float64)
    slope, first = torch.randn(2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    velocity = first + torch.arange(STEPS)[:, None] * slope
    path = torch.cat([torch.zeros(1, 5), (velocity / STEPS).neg().cumsum(0)])[None].double()
    cost = path_costs(moves(path), levels)
    assert float(cost[0, 1, 2:].max()) < 1e-12 < float(cost[1, 1, 3])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_latents_that_keep_their_variance_are_measured_over_their_signal() -> None:
    """One model, one noise: whichever way the latents are scaled, y is the same."""
    noise, clean = torch.randn(2, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for kind in (diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler):
        scheduler = kind()
        scheduler.set_timesteps(STEPS)
        known = step_levels(scheduler)
        assert known is not None
        levels, scales = known
        signal = 1 / scales
        latents = signal[:, None] * clean + (signal * levels)[:, None] * noise
        assert torch.allclose(latents * scales[:, None], clean + levels[:, None] * noise)
        assert (scales == 1).all() == (kind is diffusers.EulerDiscreteScheduler)


def test_levels_that_do_not_fall_tell_nothing() -> None:
    scheduler: Any = SimpleNamespace(
        timesteps=torch.tensor([3.0, 1.0, 2.0]), sigmas=torch.tensor([0.9, 0.2, 0.5])
    )
    assert step_levels(scheduler) is None


@pytest.mark.parametrize("starts", [(0,), (0, 4), (2,), (1, 3)])
@pytest.mark.parametrize("budget", [2, 3, 3.5])
@pytest.mark.parametrize("follower", [None, "later"])
def test_the_cheapest_schedule_is_found(starts: tuple[int, ...], budget: float, follower: Any) -> None:
    path, levels = world()
    run = RunShape(STEPS, follower, starts, path_costs(moves(path), levels))
    schedule = shaped({"spacing": "path", "tilt": 0.5, "lead": 1.0}, budget, run)
    mask = schedule.mask
    assert mask[: starts[0]] == "-" * starts[0] and all(mask[start] == "C" for start in starts)
    assert mask.count("C") + mask.count("H") == (int(budget) if schedule.follower is None else round(budget))
    if "H" not in mask:
        computed = [step for step, letter in enumerate(mask) if letter == "C"]
        assert computed == cheapest(path, levels, len(computed), starts, 0.5)


def cheapest(path: Tensor, levels: Tensor, count: int, starts: tuple[int, ...], tilt: float) -> list[int]:
    """Of all schedules, by walking them."""
    found = []
    for others in combinations([s for s in range(starts[0], STEPS) if s not in starts], count - len(starts)):
        computed, total = sorted((*starts, *others)), 0.0
        for i, (step, end) in enumerate(zip(computed, [*computed[1:], STEPS], strict=True)):
            before = step if step in starts else computed[i - 1]
            weight = float(torch.tensor(tilt * (end - starts[0]) / (STEPS - starts[0])).exp())
            total += weight * walked(path, levels, before, step, end)
        found.append((total, computed))
    return min(found)[1]


def test_moves_are_those_of_the_scaled_path() -> None:
    path = torch.randn(2, 4, 3, 70, 100, generator=torch.Generator().manual_seed(3))
    scales = torch.tensor([2.0, 1.5, 1.0, 1.0])
    steps = (path.flatten(2).double() * scales[:, None]).diff(dim=1)
    assert torch.allclose(Uncached([], path, torch.zeros(2, 1)).moves(scales), steps @ steps.mT)


def test_errors_at_the_end_count_more() -> None:
    cost = torch.ones(4, 4, 5, dtype=torch.float64)
    assert torch.allclose(tilted(cost, 2.0)[0, 1], torch.exp(2 * torch.arange(5) / 4).double())


def test_what_errors_grow_by_is_asked_of_the_scaled_path_and_multiplies_their_costs() -> None:
    scheduler: Any = diffusers.DDIMScheduler()
    scheduler.set_timesteps(STEPS)
    path = world()[0]
    asked: list[Tensor] = []

    def grown(scales: Tensor) -> Tensor:
        asked.append(scales)
        return torch.arange(1.0, STEPS + 2)

    known = step_levels(scheduler)
    plain, found = (told_by_paths(scheduler, STEPS, lambda _: moves(path), each) for each in (None, grown))
    assert known is not None and plain is not None and found is not None
    assert torch.equal(asked[0], known[1])
    assert torch.equal(found, plain * torch.arange(1, STEPS + 2))
    assert told_by_paths(scheduler, STEPS - 1, lambda _: moves(path), grown) is None
