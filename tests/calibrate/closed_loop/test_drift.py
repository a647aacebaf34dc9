"""How errors grow until a run ends: what is nudged, where it is off, and what growth that tells."""

import pytest
import torch
from tests.calibrate.closed_loop.world import STEPS, Flux, dit, shards, uncached

from cachesmith.calibrate.closed_loop.lanes import Schedule, as_policy, line_weights
from cachesmith.calibrate.schedules.drift import drift, growth, nudged
from cachesmith.runtime import apply
from cachesmith.sampling.render import Renderer

CHANNELS = 32


@pytest.mark.parametrize(
    ("steps", "starts", "mask"),
    [
        (50, (0,), "CCCFFF" + "C" * 44),
        (12, (0,), "CCCF" + "C" * 8),
        (12, (4,), "----CCCFCCCC"),
        (34, (0, 4), "CCCFC" + "C" * 29),
        (3, (0,), None),
        (9, (0, 3), None),
    ],
)
def test_a_few_early_steps_are_forecast(steps: int, starts: tuple[int, ...], mask: str | None) -> None:
    schedule = nudged(steps, starts)
    assert schedule == (None if mask is None else Schedule(mask, None, starts))


@pytest.mark.parametrize("renderer", [Flux(), dit()])
def test_a_run_is_off_by_what_it_is_off_under_a_policy(renderer: Renderer) -> None:
    schedule = nudged(STEPS)
    assert schedule is not None
    samples = uncached(renderer, 2, 2)
    errors = drift(renderer, samples, schedule, (CHANNELS,))
    assert errors.shape == (4, STEPS + 1)
    assert not errors[:, :4].any() and (errors[:, 4:] > 0).all()
    policy = as_policy(schedule, line_weights(schedule, CHANNELS, torch.device("cpu")), "x")
    latents: list[torch.Tensor] = []
    step = renderer.pipe.scheduler.step

    def stepping(*args: object, **kwargs: object) -> object:
        result = step(*args, **kwargs)
        latents.append(result[0])
        return result

    renderer.pipe.scheduler.step = stepping
    with apply(renderer.pipe, policy):
        renderer(samples[1].requests)
    del renderer.pipe.scheduler.step
    ends = torch.stack([samples[1].path[:, 0], *(each[:2] for each in latents)], 1)
    expected = (ends - samples[1].path).square().flatten(2).mean(2)
    torch.testing.assert_close(errors[2:], expected, rtol=1e-3, atol=1e-9)


def test_growth_is_that_of_squared_errors_from_each_point_to_the_end() -> None:
    factors = torch.tensor([1.5, 0.5, 3.0, 1.0, 2.0], dtype=torch.float64)
    errors = torch.cat([torch.zeros(2), torch.full((1,), 1e-3), 1e-3 * factors.square().cumprod(0)])[None]
    ends = factors.square().flip(0).cumprod(0).flip(0)
    expected = torch.cat([ends[:1].expand(3), ends[1:], torch.ones(1)])
    torch.testing.assert_close(growth(errors.repeat(3, 1), Schedule("FFCCCCC")), expected)


def test_those_samples_count_most_in_which_errors_grow_most() -> None:
    errors = torch.tensor([[1.0, 1.0, 9.0], [1.0, 2.0, 1.0]])
    mean = ((81 + 0.25) / 2) ** 0.5
    expected = [mean, mean, 1.0]
    torch.testing.assert_close(growth(errors, Schedule("FC")), torch.tensor(expected, dtype=torch.float64))
    for nothing in (0.0, torch.inf, torch.nan):
        assert (growth(torch.full((2, 3), nothing), Schedule("FC")) == 1).all()


def test_some_samples_of_several_workers_are_told_in_their_order() -> None:
    schedule, counted = nudged(STEPS), list[float]()
    assert schedule is not None
    found = [
        shards(dit(), 2, 3, workers).drift(range(4), schedule, (CHANNELS,), counted.append)
        for workers in (1, 2)
    ]
    assert found[0].shape == (4, STEPS + 1) and counted == [4, 2, 2]
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-9)
