"""The path of a run: latents at a few steps, per sample, whatever the batch."""

from copy import deepcopy
from inspect import signature
from typing import Any

import diffusers
import pytest
import torch
from tests.tiny import tiny_dit

from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request, requests
from cachesmith.sampling.waypoints import WAYPOINTS, follow, joined_path, visited_steps, waypoints

STEPS = 10


def some(count: int) -> tuple[Request, ...]:
    return requests([{"class_labels": i} for i in range(count)], count, 0)


@pytest.mark.parametrize("steps", [3, 4, 8, 10, 28, 50])
def test_waypoints_part_the_run(steps: int) -> None:
    found = waypoints(steps)
    assert list(found) == sorted(set(found)) and min(found) > 0 and max(found) < steps - 1
    assert len(found) == min(WAYPOINTS, steps - 2)


@pytest.mark.filterwarnings("ignore:__array__")
def test_steps_that_a_run_visits() -> None:
    """A sampler of second order lists every step but the last twice."""
    for scheduler, visited in ((None, STEPS), (diffusers.HeunDiscreteScheduler(), 2 * STEPS - 1)):
        pipe = tiny_dit(scheduler=scheduler)
        with visited_steps(pipe.scheduler) as runs:
            Renderer(pipe, STEPS, batch=2, guidance_scale=1.0)(some(3))
        assert runs == [visited, visited]


def test_latents_are_those_of_each_sample() -> None:
    """The DiT pipeline steps both halves of guidance: the second is no sample."""
    pipe, wanted = tiny_dit(), some(3)
    stepped: list[torch.Tensor] = []
    real = pipe.scheduler.step

    def spy(output: Any, timestep: Any, sample: torch.Tensor, **kwargs: Any) -> Any:
        stepped.append(sample)
        return real(output, timestep, sample, **kwargs)

    pipe.scheduler.step = spy
    pictures, path = Renderer(pipe, STEPS, guidance_scale=1.5).walk(wanted)
    assert path.shape[:2] == (3, len(waypoints(STEPS)))
    for place, step in enumerate(waypoints(STEPS)):
        assert torch.equal(path[:, place], stepped[step][:3])
    assert len(pictures.images) == 3


def test_batches_change_nothing() -> None:
    wanted = some(5)
    whole, whole_path = Renderer(tiny_dit(), STEPS, 5, guidance_scale=1.5).walk(wanted)
    parts, parts_path = Renderer(tiny_dit(), STEPS, 2, guidance_scale=1.5).walk(wanted)
    assert torch.allclose(whole.images, parts.images, atol=1e-5)
    assert torch.allclose(whole_path, parts_path, atol=1e-4)


def test_gradients_flow_through_the_path() -> None:
    pipe, wanted = tiny_dit(), some(2)
    renderer = Renderer(pipe, STEPS, guidance_scale=1.5)
    images, path = renderer.differentiable(wanted)
    uncached, expected = renderer.walk(wanted)
    assert torch.allclose(images, uncached.images, atol=1e-5) and torch.allclose(path, expected, atol=1e-4)
    assert not expected.requires_grad
    (gradient,) = torch.autograd.grad(path[:, 0].sum(), next(pipe.transformer.parameters()))
    assert gradient.any()


def test_pipelines_still_see_what_a_scheduler_takes() -> None:
    scheduler = tiny_dit().scheduler
    before = signature(scheduler.step)
    with follow(scheduler, (1,)):
        assert signature(scheduler.step) == before


def test_a_copied_scheduler_steps_by_itself() -> None:
    """And leaves no path, on which every run agrees."""
    pipe = tiny_dit()
    pipe.scheduler.set_timesteps(STEPS)
    latents = torch.ones(2, 4, 8, 8)
    with follow(pipe.scheduler, (0,)) as seen:
        deepcopy(pipe.scheduler).step(latents, pipe.scheduler.timesteps[0], latents)
        assert not joined_path(seen, 2).any()
        pipe.scheduler.step(latents, pipe.scheduler.timesteps[0], sample=latents)
    assert torch.equal(joined_path(seen, 1), latents[:1, None])


def test_the_scheduler_is_left_as_it_was() -> None:
    pipe = tiny_dit()
    with pytest.raises(ZeroDivisionError), follow(pipe.scheduler, (1,)):
        raise ZeroDivisionError
    assert "step" not in vars(pipe.scheduler)
