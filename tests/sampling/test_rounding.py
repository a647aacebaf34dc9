"""Sizes and lengths that a pipeline would round are told before its first call."""

import warnings
from typing import Any

import pytest
import torch
from tests.pipelines import PIPELINES
from tests.tiny import tiny_flux

from cachesmith.commands.shared.spoken import spoken_warnings
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request, check_requests

TEXT = {"prompt_embeds": torch.zeros(1, 3, 32), "pooled_prompt_embeds": torch.zeros(1, 32)}


def told(pipe: Any, arguments: dict[str, Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        check_requests(pipe, [Request(arguments, 0, "")], {})
    return [str(each.message) for each in found if each.category is RuntimeWarning]


@pytest.mark.parametrize(
    ("name", "asked", "drawn", "next_"),
    [
        ("WanPipeline", 6, 5, 9),
        ("HunyuanVideoPipeline", 7, 5, 9),
        ("MochiPipeline", 8, 7, 13),
    ],
)
def test_a_length_that_is_rounded(name: str, asked: int, drawn: int, next_: int) -> None:
    tiny = PIPELINES[name]
    pipe, given = tiny.pipe(), {**tiny.request(0), "num_frames": asked}
    (said,) = told(pipe, given)
    assert said.startswith(name) and said.endswith(f"asked for {asked}; ask for {drawn} or {next_}")
    assert not told(pipe, {**given, "num_frames": drawn})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Renderer(pipe, 2)([Request(given, 0, "")]).size["num_frames"] == drawn


@pytest.mark.parametrize("name", ["LTXPipeline", "EasyAnimatePipeline"])
def test_however_the_factor_is_called(name: str) -> None:
    tiny = PIPELINES[name]
    given = tiny.request(0)
    assert not told(tiny.pipe(), given)
    assert len(told(tiny.pipe(), {**given, "num_frames": given["num_frames"] + 1})) == 1


@pytest.mark.parametrize("name", ["AllegroPipeline", "CogVideoXPipeline"])
def test_of_other_rules_nothing_is_claimed(name: str) -> None:
    tiny = PIPELINES[name]
    for frames in range(4, 10):
        assert not told(tiny.pipe(), {**tiny.request(0), "num_frames": frames})


@pytest.mark.parametrize("text", [TEXT, {"prompt": "a bag"}])
def test_a_size_that_is_rounded(text: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """By the pipeline's own check, for texts and for embeddings; once for many prompts, and nothing is drawn yet."""
    requests = [Request({**text, "height": height, "width": 16}, 0, "") for height in (17, 17, 16)]
    pipe = tiny_flux()
    pipe.text_encoder = torch.nn.Identity()
    with spoken_warnings():
        check_requests(pipe, requests, {})
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1 and "divisible by 2 but are 17 and 16. Dimensions will be" in said
