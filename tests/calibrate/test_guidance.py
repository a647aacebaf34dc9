"""Guidance is told from the rows of a call, and which half leads from what reaches the latents."""

from typing import Any

import pytest
from tests.calibrate.closed_loop.world import Flux, dit, uncached
from tests.pipelines import PIPELINES

from cachesmith.calibrate.guidance import guidance_of
from cachesmith.calibrate.probe import Shape, probe, rows_are_samples
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import requests


@pytest.mark.parametrize(
    ("branches", "rows", "samples", "expected"),
    [
        ({"0"}, 8, 8, "none"),
        ({"0"}, 16, 8, "batched"),
        ({"0", "1"}, 16, 8, "sequential"),
    ],
)
def test_rows_beyond_the_samples_are_guidance(
    branches: set[str], rows: int, samples: int, expected: str
) -> None:
    assert guidance_of(branches, rows, samples) == expected


@pytest.mark.parametrize(
    ("make", "guidance", "follower"),
    [
        (dit, "batched", "second"),
        (lambda: dit(1.0), "none", None),
        (lambda: dit(0.2), "none", None),
        (Flux, "none", None),
        (lambda: Flux(2.0), "sequential", "later"),
    ],
)
def test_the_half_that_moves_the_latents_less_follows(make: Any, guidance: str, follower: str | None) -> None:
    renderer = make()
    shape = probe(renderer, uncached(renderer, 1, 3)[0].requests)
    assert shape == Shape(guidance, follower, (32,), shape.call, 10.0)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize(
    ("name", "apart"), [("DiTPipeline", True), ("ErnieImagePipeline", False), ("LattePipeline", False)]
)
def test_whether_a_row_of_the_blocks_is_a_sample(name: str, apart: bool) -> None:
    """It is a token's in ERNIE-Image, and a frame's in Latte."""
    tiny = PIPELINES[name]
    two = requests([tiny.request(i) for i in range(2)], 2, 3)
    renderer = Renderer(tiny.pipe(), tiny.steps, 2, output_type="latent")
    assert rows_are_samples(renderer, two) is apart
