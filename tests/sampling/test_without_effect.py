"""What a pipeline takes and makes nothing of is told, and nothing else is."""

import warnings
from typing import Any

import pytest
import torch
from tests.pipelines import PIPELINES
from tests.tiny import tiny_flux

from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request, check_requests

TEXT = {"prompt_embeds": torch.zeros(1, 3, 32), "pooled_prompt_embeds": torch.zeros(1, 32)}
NEGATIVE = {f"negative_{name}": value for name, value in TEXT.items()}


def told(pipe: Any, **arguments: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        check_requests(pipe, [Request(arguments, 0, "")], {}, 2)
    return [str(each.message) for each in found if each.category is RuntimeWarning]


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("FluxPipeline (true CFG)", "true_cfg_scale"),
        ("QwenImagePipeline", "true_cfg_scale"),
        ("StableDiffusion3Pipeline", "guidance_scale"),
        ("AuraFlowPipeline", "guidance_scale"),
        ("WanPipeline", "guidance_scale"),
    ],
)
def test_a_negative_prompt_is_told_of_where_it_changes_no_picture(
    name: str, argument: str, scale: float
) -> None:
    pipe = PIPELINES[name].pipe()
    given = {**PIPELINES[name].request(0), argument: scale}
    given.setdefault("negative_prompt_embeds", 0.5 * given["prompt_embeds"])
    other = {**given, "negative_prompt_embeds": 3 * given["negative_prompt_embeds"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, two = (Renderer(pipe, 2)([Request(each, 0, "")]).images for each in (given, other))
    same = torch.equal(one, two)
    assert same == (scale == 1)
    found = [text for text in told(pipe, **given) if "negative_prompt_embeds" in text]
    assert len(found) == same
    assert all(f"while '{argument}' is 1; give a larger one" in text for text in found)


def test_an_empty_negative_prompt_is_none() -> None:
    pipe = PIPELINES["StableDiffusion3Pipeline"].pipe()
    pipe.text_encoder = torch.nn.Identity()
    given = {"prompt": "a", "guidance_scale": 1.0, "height": 16, "width": 16}
    assert not told(pipe, **given, negative_prompt=" ")
    assert told(pipe, **given, negative_prompt="b")


def test_true_guidance_without_a_negative_prompt() -> None:
    (found,) = told(tiny_flux(), **TEXT, true_cfg_scale=3.0)
    assert found.startswith("FluxPipeline makes nothing of a 'true_cfg_scale' of 3 without a negative prompt")
    assert not told(tiny_flux(), **TEXT, **NEGATIVE, true_cfg_scale=3.0)
    assert not told(tiny_flux(), **TEXT)


def test_a_scale_that_the_network_has_no_input_for() -> None:
    pipe = tiny_flux()
    assert not pipe.transformer.config.guidance_embeds
    usual = 3.5
    assert not told(pipe, **TEXT, guidance_scale=usual), "the pipeline's own"
    (found,) = told(pipe, **TEXT, guidance_scale=2.0)
    assert found.startswith("FluxPipeline makes nothing of 'guidance_scale' with this transformer")


def test_a_size_that_is_rounded() -> None:
    pipe = PIPELINES["FluxPipeline"].pipe()
    asked = {**PIPELINES["FluxPipeline"].request(0), "height": 17, "width": 16}
    with pytest.warns(
        RuntimeWarning, match=r"FluxPipeline draws height 16 where it is asked for height 17; ask"
    ):
        pictures = Renderer(pipe, 1)([Request(asked, 0, "")])
    assert pictures.size == {"channels": 3, "height": 16, "width": 16}
