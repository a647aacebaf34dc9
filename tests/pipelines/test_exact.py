"""Unusual calls: exact where everything is computed, and every call of a block is counted where it is not."""

from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch

from cachesmith.policies import Interval, Policy, Stack, preset
from cachesmith.runtime import apply
from cachesmith.runtime.models.denoisers import denoisers
from cachesmith.runtime.models.units import block_lists
from cachesmith.runtime.stats import NOT_WHOLE, OTHER_HISTORY, Stats
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import requests
from tests.pipelines import PIPELINES
from tests.pipelines.guided import modular, modular_asked
from tests.tiny import Pipeline, policy

USUAL = (
    "FluxControlNetPipeline",
    "QwenImageEditPlusPipeline",
    "StableDiffusion3ControlNetPipeline",
    "WanImageToVideoPipeline (2.2)",
    "WanImageToVideoPipeline (first and last frame)",
    "WanVACEPipeline",
)
"""ControlNet, pictures as input, two experts, first frame and last frame, blocks beside the blocks."""


class Sampled(NamedTuple):
    """Latents of one request, the calls of the blocks' attentions, and what a session told."""

    latents: torch.Tensor
    calls: int
    stats: Stats


def sample(pipe: Pipeline, steps: int, request: dict[str, Any], chosen: Policy | None) -> Sampled:
    calls, handles = [0], []
    for part in denoisers(pipe).values():
        for _, block in block_lists(part):
            inner = next(module for module in block.children() if [*module.parameters()])
            handles.append(inner.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1)))
    try:
        with nullcontext() if chosen is None else apply(pipe, chosen) as session:
            latents = Renderer(pipe, steps, 1)(requests([request], 1, 3)).latents
    finally:
        for handle in handles:
            handle.remove()
    return Sampled(latents, calls[0], Stats() if session is None else session.stats)


def check(pipe: Pipeline, steps: int, request: dict[str, Any]) -> tuple[Sampled, Sampled, Sampled]:
    """Without a policy; under one that computes all, to the bit; and under one that forecasts two steps of three."""
    plain = sample(pipe, steps, request, None)
    whole = sample(pipe, steps, request, preset("uncached"))
    assert torch.equal(whole.latents, plain.latents) and whole.calls == plain.calls > 0
    cached = sample(pipe, steps, request, policy(Stack(), Interval(interval=3)))
    assert cached.latents.isfinite().all() and not torch.equal(cached.latents, plain.latents)
    return plain, whole, cached


def asked(name: str, **more: Any) -> tuple[Pipeline, int, dict[str, Any]]:
    tiny = PIPELINES[name]
    return tiny.pipe(), tiny.steps, tiny.request(0) | more


def counted(plain: Sampled, whole: Sampled, cached: Sampled) -> bool:
    """Whether NFC falls as the calls of blocks do."""
    return cached.stats.nfc == pytest.approx(whole.stats.nfc * cached.calls / plain.calls)


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated")
@pytest.mark.parametrize("name", USUAL)
def test_exact_and_counted(name: str) -> None:
    pipe, steps, request = asked(name)
    plain, whole, cached = check(pipe, steps, request)
    assert whole.stats.nfc == steps and cached.stats.nfc == 3 and not cached.stats.fallbacks
    assert counted(plain, whole, cached) and not whole.stats.fallbacks


def test_an_ip_adapter() -> None:
    without = sample(*asked("FluxPipeline"), None)
    plain, whole, cached = check(*asked("FluxPipeline (IP-Adapter)"))
    assert not torch.equal(plain.latents, without.latents)
    assert cached.stats.nfc == 3 and not cached.stats.fallbacks and counted(plain, whole, cached)


def test_guidance_that_is_off_for_the_second_half() -> None:
    """The branches of the run are counted as called: 8 calls of one and 4 of the other."""
    plain, whole, cached = check(*asked("Lumina2Pipeline", cfg_trunc_ratio=0.5))
    assert whole.stats.nfc == (8 + 4) / 2 and cached.stats.nfc == (3 + 2) / 2
    assert counted(plain, whole, cached) and not cached.stats.fallbacks


def test_a_modular_pipeline_with_a_guider_that_stops() -> None:
    pipe = modular(stop=0.5)
    request = modular_asked(0) | {"num_inference_steps": 8, "output_type": "pt"}

    def call() -> torch.Tensor:
        images: torch.Tensor = pipe(**request, generator=torch.Generator().manual_seed(1), output="images")
        return images

    plain = call()
    with apply(pipe, preset("uncached")) as session:
        assert torch.equal(call(), plain)
    assert session.stats.nfc == (8 + 4) / 2
    with apply(pipe, policy(Stack(), Interval(interval=3))) as session:
        assert not torch.equal(call(), plain)
    assert session.stats.nfc == (3 + 2) / 2 and not session.stats.fallbacks


def test_the_second_expert_is_guided_by_a_scale_of_its_own() -> None:
    """Also by 1: the pipeline calls it for both branches nevertheless."""
    plain, whole, cached = check(*asked("WanPipeline (2.2)", guidance_scale_2=1.0))
    assert whole.stats.nfc == 8 and cached.stats.nfc == 3 and counted(plain, whole, cached)


@pytest.mark.filterwarnings("ignore:cachesmith computed")
@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_a_further_branch_that_leaves_a_block_out(left_out: int) -> None:
    """Skip-layer guidance of SD3 at four of eight steps. Without its first or last block the branch is computed, and
    that is told."""
    pipe, steps, request = asked(
        "StableDiffusion3Pipeline", skip_guidance_layers=[left_out], skip_layer_guidance_stop=0.6
    )
    plain, whole, cached = check(pipe, steps, request)
    assert plain.calls == 8 * 3 + 4 * 2
    told = {0: {NOT_WHOLE: 4}, 1: {}, 2: {NOT_WHOLE: 4, OTHER_HISTORY: 2}}[left_out]
    assert cached.stats.fallbacks == told and bool(whole.stats.fallbacks) == (left_out != 1)
    assert whole.stats.nfc == (8 + 4) / 2
    assert cached.stats.nfc == (3 + (2 if left_out == 1 else 4)) / 2
    assert cached.calls == 3 * 3 + 2 * (2 if left_out == 1 else 4)
