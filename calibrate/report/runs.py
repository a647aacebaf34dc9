"""What the report samples: every distinct profile, and the sampler's states on the way."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cachesmith.policies import Policy, Sampled
from cachesmith.runtime.hooks.patch import patched
from cachesmith.sampling.metrics import relative_error
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request, batches


def distinct(policy: Policy) -> list[str]:
    """Names of the profiles, without those that only repeat another one under a different name."""
    seen: dict[str, str] = {}
    for name, profile in policy.document.profiles.items():
        key = repr(profile.model_dump(include={*Sampled.model_fields, "denoisers"}))
        seen.setdefault(key, name)
    return list(seen.values())


class Trajectory(NamedTuple):
    """One sample: the scheduler's state after every step, [...] each, on the host in its own dtype; what was drawn."""

    states: tuple[Tensor, ...]
    drawn: Tensor


def trajectories(renderer: Renderer, requests: Sequence[Request]) -> list[Trajectory]:
    """Sample all requests, in as many calls as that takes; they may differ in size."""
    found: dict[int, Trajectory] = {}
    for places in batches(requests, renderer.batch):
        with _followed(renderer.pipe.scheduler) as states:
            pictures = renderer([requests[place] for place in places])
        for row, place in enumerate(places):
            found[place] = Trajectory(tuple(state[row] for state in states), pictures.image_samples[row])
    return [found[place] for place in range(len(requests))]


def state_errors(uncached: Trajectory, cached: Trajectory) -> tuple[float, ...]:
    """Return the relative error of the state after every step; one state is widened at a time."""
    pairs = zip(uncached.states, cached.states, strict=True)
    return tuple(float(relative_error(a[None], b[None])) for a, b in pairs)


@contextmanager
def _followed(scheduler: Any) -> Iterator[list[Tensor]]:
    step, states = scheduler.step, list[Tensor]()

    def spy(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        states.append(result[0].detach().to("cpu", copy=True))
        return result

    with patched(scheduler, "step", spy), torch.no_grad():
        yield states
