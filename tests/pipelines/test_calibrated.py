"""Pipelines of every architecture are calibrated, and run under what came out; the page of models says which."""

import json
from pathlib import Path

import pytest

from tests.pipelines import PIPELINES
from tests.pipelines.sweep import FOUND, check

QUICK = ("FluxImg2ImgPipeline", "StableAudio3Pipeline")
"""A run that begins in the middle, and sound."""
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in PIPELINES]


def found() -> dict[str, dict[str, str]]:
    known: dict[str, dict[str, str]] = json.loads(FOUND.read_text(encoding="utf-8"))
    return known


def test_every_pipeline_was_tried() -> None:
    assert {*found()} == {*PIPELINES}, "python -m tests.pipelines.sweep"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_calibrate_end_to_end(name: str, tmp_path: Path) -> None:
    if found()[name]["calibrate"] == "yes":
        assert check(PIPELINES[name], tmp_path) == found()[name]["transformer"]
        return
    with pytest.raises(Exception, match=r"."):
        check(PIPELINES[name], tmp_path)
