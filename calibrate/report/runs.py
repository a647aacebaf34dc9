"""What the report samples: every distinct profile, and the sampler's states on the way."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cachesmith.policies import Policy, Sampled
from cachesmith.runtime.hooks.patch import patched
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request


def distinct(policy: Policy) -> list[str]:
    """Names of the profiles, without those that only repeat another one under a different name."""
    seen: dict[str, str] = {}
    for name, profile in policy.document.profiles.items():
        key = repr(profile.model_dump(include={*Sampled.model_fields, "denoisers"}))
        seen.setdefault(key, name)
    return list(seen.values())


def trajectory(renderer: Renderer, requests: Sequence[Request]) -> tuple[list[Tensor], Tensor]:
    """Sample one batch and return the scheduler's state after every step, and the images."""
    scheduler = renderer.pipe.scheduler
    step, states = scheduler.step, list[Tensor]()

    def spy(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        states.append(result[0].detach().double().cpu())
        return result

    with patched(scheduler, "step", spy), torch.no_grad():
        images = renderer(requests).images
    return states, images
