"""What is told of a pipeline before anything is computed."""

from typing import Any

import torch
from tests.tiny import tiny_flux

from cachesmith.calibrate.fitting import fit_method
from cachesmith.calibrate.probe import other_sizes
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request, requests

SIZES = ((16, 16), (32, 16), (16, 16), (16, 24))


def of_sizes() -> tuple[Request, ...]:
    text = {"prompt_embeds": torch.zeros(1, 3, 32), "pooled_prompt_embeds": torch.zeros(1, 32)}
    prompts: list[Any] = [{**text, "height": height, "width": width} for height, width in SIZES]
    return requests(prompts, len(prompts), 0)


def test_every_other_size_is_asked_for_once() -> None:
    renderer, asked = Renderer(tiny_flux(), 4, 4), of_sizes()
    calls = other_sizes(renderer, asked[0], asked)
    assert {(call.size["height"], call.size["width"]): call.latents for call in calls} == {
        (32, 16): (128, 16),
        (16, 24): (96, 16),
    }
    assert len(calls) == 2 and not other_sizes(renderer, asked[0], asked[::2])


def test_a_fitted_policy_knows_every_size() -> None:
    policy = fit_method(tiny_flux(), "magcache", of_sizes()[::3], 6, 1, {}, {})
    assert policy.document.sampler is not None and policy.document.sampler.sizes is not None
    assert {(size.height, size.width) for size in policy.document.sampler.sizes} == {(16, 16), (16, 24)}
