"""Every argument against the pipeline's signature, before the first sample."""

from typing import Any

import diffusers
import pytest
import torch
from tests.tiny import tiny_dit, tiny_flux, tiny_vae

from cachesmith.policies import CachesmithError
from cachesmith.sampling.loop import SamplingLoop
from cachesmith.sampling.requests import Request, as_declared, check_requests

EMBEDS = {"prompt_embeds": torch.zeros(1, 3, 32), "pooled_prompt_embeds": torch.zeros(1, 32)}


def check(pipe: Any, arguments: dict[str, Any], steps: int | None = 8, **common: Any) -> None:
    check_requests(pipe, [Request(arguments, 0, "p.jsonl, line 7")], common, steps)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"height": "32"}, ("'height'", "a text in quotes, '32'", "takes a whole number")),
        ({"height": 32.5}, ("'height'", "a whole number")),
        ({"height": True}, ("'height'", "true or false")),
        ({"height": 0}, ("'height' is 0", "from 1 on")),
        ({"width": -16}, ("'width' is -16",)),
        ({"guidance_scale": "3"}, ("'guidance_scale'", "a number")),
        ({"guidance_scale": None}, ("'guidance_scale' is null",)),
        ({"max_sequence_length": "8"}, ("'max_sequence_length'",)),
        ({"latents": [[1.0]]}, ("'latents' is a list", ".safetensors")),
        ({"latents": "noise"}, ("'latents'", "path")),
        ({"callback_on_step_end": "x"}, ("'callback_on_step_end'", "a Python function")),
        ({"joint_attention_kwargs": [1]}, ("'joint_attention_kwargs'", "an object in braces")),
        ({"sigmas": [1.0, "0.5"]}, ("'sigmas'",)),
        ({"sigmas": [1.0, 0.5]}, ("2 noise levels, but 8 steps", "--num-inference-steps 2")),
        ({"heigth": 32}, ("takes no 'heigth'", "height")),
        ({"generator": 0}, ("use --seed",)),
        ({"output_type": "pil"}, ("leave it out",)),
        ({"prompt": ["a", "b"]}, ("one text for each sample",)),
        ({"prompt": 5}, ("one text for each sample",)),
        ({"prompt": "a bag"}, ("without one", "prompt_embeds")),
        ({"guidance_scale": float("inf")}, ("finite",)),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], said: tuple[str, ...]) -> None:
    with pytest.raises(CachesmithError, match=r"^p\.jsonl, line 7: ") as told:
        check(tiny_flux(), {**EMBEDS, **arguments})
    assert all(part in str(told.value) for part in said), str(told.value)
    assert len(str(told.value)) < 800


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"height": 16, "width": 16, "true_cfg_scale": 1},
        {"height": None, "latents": None},
        {"latents": torch.zeros(1, 4, 64)},
        {"joint_attention_kwargs": {"scale": 0.5}},
        {"sigmas": [1.0] * 8},
        {"output_type": "latent"},
    ],
)
def test_what_is_taken(arguments: dict[str, Any]) -> None:
    check(tiny_flux(), {**EMBEDS, **arguments})


def test_pipelines_can_be_told_that_there_is_no_text() -> None:
    """PixArt refuses embeddings beside the empty text that it has for a default."""
    pipe = diffusers.PixArtSigmaPipeline(None, None, tiny_vae(), tiny_dit().transformer, None)
    check(pipe, {"prompt_embeds": torch.zeros(1, 3, 32), "negative_prompt": None})


def test_lists_are_tuples_where_a_pipeline_takes_no_lists() -> None:
    pipe = diffusers.HunyuanDiTPipeline(*[None] * 5, None, None, requires_safety_checker=False)
    given = {"original_size": [16, 16], "prompt_embeds": [1]}
    assert as_declared(pipe, given) == {"original_size": (16, 16), "prompt_embeds": [1]}


@pytest.mark.parametrize("label", ["3", [3], 3.0, True, None, -1, 1000])
def test_labels_are_whole_numbers_of_the_model(label: Any) -> None:
    with pytest.raises(CachesmithError, match="class label"):
        check(tiny_dit(), {"class_labels": label})


def test_arguments_of_every_call_are_checked_too() -> None:
    with pytest.raises(CachesmithError, match="finite"):
        check(tiny_dit(), {"class_labels": 3}, guidance_scale=float("inf"))


def test_the_pipeline_checks_what_it_can() -> None:
    """Its own sentence, but before anything is sampled, and with the line."""
    pipe = tiny_flux()
    with pytest.raises(CachesmithError, match=r"line 7: FluxPipeline refuses it: Provide either `prompt`"):
        check(pipe, {"prompt_embeds": None, "height": 16, "width": 16})


def test_a_loop_is_checked_by_its_own_signature() -> None:
    pipe = tiny_dit()

    def sample(generator: Any, num_inference_steps: int, label: int, size: float = 1) -> torch.Tensor:
        raise AssertionError

    loop = SamplingLoop(pipe.transformer, pipe.scheduler, sample)
    check(loop, {"label": 3})
    for wrong, said in (
        ({}, "needs 'label'"),
        ({"label": "3"}, "a whole number"),
        ({"label": 3, "x": 1}, "no 'x'"),
    ):
        with pytest.raises(CachesmithError, match=said):
            check(loop, wrong)


@pytest.mark.parametrize(
    "name",
    ["FluxPipeline", "WanPipeline", "QwenImagePipeline", "StableDiffusion3Pipeline", "HunyuanVideoPipeline",
     "PixArtAlphaPipeline", "LTXPipeline", "CogVideoXPipeline", "SanaPipeline", "LTX2Pipeline"],
)  # fmt: skip
def test_usual_arguments_fit_the_annotations_of_real_pipelines(name: str) -> None:
    """No false alarm: those lines are right for every one of them."""
    from inspect import signature

    from cachesmith.sampling.requests.annotations import takes

    call = getattr(diffusers, name).__call__
    usual = {
        "prompt": "a cat", "negative_prompt": "blurry", "height": 512, "width": 512, "num_frames": 9,
        "guidance_scale": 3, "prompt_embeds": torch.zeros(1), "latents": torch.zeros(1), "sigmas": [1.0, 1],
        "timesteps": [1, 2], "max_sequence_length": 128, "eta": 0.0, "true_cfg_scale": 1, "frame_rate": 24,
        "attention_kwargs": {"scale": 1.0},
    }  # fmt: skip
    parameters = signature(call, eval_str=True).parameters
    wrong = {n for n, value in usual.items() if n in parameters and not takes(parameters[n], value)}
    assert not wrong
