"""What the report samples: as many calls as it takes, of whatever sizes."""

from typing import Any

import pytest
import torch
from tests.tiny import tiny_flux

from cachesmith.calibrate.report.runs import state_errors, trajectories
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request

STEPS = 6


def request(seed: int, side: int) -> Request:
    generator = torch.Generator().manual_seed(seed)
    text: dict[str, Any] = {
        "prompt_embeds": torch.randn(1, 3, 32, generator=generator),
        "pooled_prompt_embeds": torch.randn(1, 32, generator=generator),
    }
    return Request({**text, "height": side, "width": side}, seed, "")


def test_walks_of_several_calls_are_in_the_order_of_their_requests() -> None:
    renderer = Renderer(tiny_flux(), STEPS, 2)
    asked = [request(0, 32), request(1, 16), request(2, 32), request(3, 32)]
    found = trajectories(renderer, asked)
    for found_one, each in zip(found, asked, strict=True):
        (alone,) = trajectories(renderer, [each])
        assert found_one.drawn.shape[-1] == each.arguments["height"]
        assert len(found_one.states) == STEPS and max(state_errors(alone, found_one)) < 1e-5
    assert min(state_errors(found[0], found[2])) > 0.1


def test_states_take_no_more_than_the_sampler_has() -> None:
    """Those of a video are large, and there are as many as steps; errors are in float64 all the same."""
    (found,) = trajectories(Renderer(tiny_flux(), STEPS), [request(0, 32)])
    assert {state.dtype for state in found.states} == {torch.float32}
    other = found._replace(states=tuple(state * (1 + 1e-4) for state in found.states))
    expected = [
        float((b.double() - a.double()).norm() / a.double().norm())
        for a, b in zip(found.states, other.states, strict=True)
    ]
    assert state_errors(found, other) == pytest.approx(expected, rel=1e-12)
