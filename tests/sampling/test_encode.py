"""Text encoders run once per prompt, without a graph, and change nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from cachesmith.sampling.encode import encoded_once
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import read_prompts, requests

FLUX = Path(__file__).parents[2] / "examples" / "fashion_flux"
STEPS = 4


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = DiffusionPipeline.from_pretrained(FLUX / "model", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def encodings(pipe: Any) -> Iterator[list[bool]]:
    """Whether gradients were on, for each call of the second text encoder."""
    calls: list[bool] = []
    hook = pipe.text_encoder_2.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    yield calls
    hook.remove()


def test_prompts_are_encoded_once(pipe: Any, encodings: list[bool]) -> None:
    wanted = requests(read_prompts(FLUX / "prompts.jsonl")[:4], 4, 0)
    renderer = Renderer(pipe, STEPS, batch=2)
    plain = renderer(wanted)
    encodings.clear()
    with encoded_once(pipe):
        pictures = [renderer(wanted) for _ in range(2)]
    assert len(encodings) == 2 and all(torch.equal(p.images, plain.images) for p in pictures)
    assert "encode_prompt" not in vars(pipe)
    renderer(wanted)
    assert len(encodings) == 4


def test_what_is_kept_has_a_limit(pipe: Any, encodings: list[bool]) -> None:
    wanted = requests(read_prompts(FLUX / "prompts.jsonl")[:2], 2, 0)
    renderer = Renderer(pipe, STEPS, batch=1)
    with encoded_once(pipe, limit=1):
        renderer(wanted)
        renderer(wanted)
    assert len(encodings) == 4


def test_prompts_are_encoded_without_a_graph(pipe: Any, encodings: list[bool]) -> None:
    wanted = requests(read_prompts(FLUX / "prompts.jsonl")[:2], 2, 0)
    images, _ = Renderer(pipe, STEPS).differentiable(wanted)
    assert images.requires_grad and encodings == [False]
    weight = next(pipe.text_encoder_2.parameters())
    (gradient,) = torch.autograd.grad(images.sum(), weight, allow_unused=True)
    assert gradient is None
