"""Guidance is told from the rows of a call, whatever number of samples shares it."""

from pathlib import Path
from typing import Any

import pytest
from tests.calibrate.small import pipeline, settings

from cachesmith.calibrate.guidance import guidance_of
from cachesmith.calibrate.record.stage import record
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


@pytest.mark.parametrize(("scales", "expected"), [((1.5, 2.0), "batched"), ((1.0, 0.5), "none")])
def test_requests_that_cannot_share_a_call(
    tmp_path: Path, scales: tuple[float, float], expected: str
) -> None:
    """Every second one has other arguments, so that all are sampled alone."""
    prompts: list[Any] = [{"class_labels": 1, "guidance_scale": scale} for scale in scales]
    recording = record(Renderer(pipeline(), 16, batch=8), requests(prompts, 4, 0), settings(tmp_path))
    assert recording.guidance == expected
