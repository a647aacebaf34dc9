"""Sampling any list of requests: sizes that differ, tensors, starts in the middle, loops of a user's own."""

import gc
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    FluxImg2ImgPipeline,
    FluxPipeline,
    IPNDMScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
)
from diffusers import WanTransformer3DModel as Wan
from diffusers.utils import export_to_video
from tests.pipelines.guided import modular, modular_asked
from tests.tiny import tiny_dit, tiny_flux

from cachesmith.policies import PRESETS, CachesmithError
from cachesmith.runtime import apply
from cachesmith.runtime.models.fingerprint import sampler_key
from cachesmith.sampling.bench import bench
from cachesmith.sampling.evaluate import Evaluator
from cachesmith.sampling.loop import SamplingLoop
from cachesmith.sampling.pictures import pictures_of
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request, batches, differing_arguments, read_prompts, requests
from cachesmith.sampling.scores import compare, summarise
from cachesmith.sampling.sheet import grid, sheet, tile
from cachesmith.sampling.waypoints import waypoints

STEPS = 8


def text(seed: int, length: int = 3) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {
        "prompt_embeds": torch.randn(1, length, 32, generator=noise),
        "pooled_prompt_embeds": torch.randn(1, 32, generator=noise),
    }


def mixed() -> tuple[Request, ...]:
    """Four samples of two sizes in turns, and one whose prompt has another length."""
    rows: list[Any] = [{**text(i), "height": 16, "width": 16 + 16 * (i % 2)} for i in range(4)]
    return requests([*rows, {**text(9, length=5), "height": 16, "width": 16}], 5, 0)


def test_sizes_are_grouped_wherever_they_stand() -> None:
    assert batches(mixed(), 8) == [[0, 2], [1, 3], [4]]
    assert batches(mixed(), 1) == [[0], [2], [1], [3], [4]]
    other = Request({**mixed()[0].arguments, "guidance_scale": 2.0}, 7)
    assert batches([mixed()[0], other], 8) == [[0], [1]]


def test_samples_of_several_sizes_come_back_in_order() -> None:
    pipe, wanted = tiny_flux(), mixed()
    together = Renderer(pipe, STEPS, batch=4).reference(wanted)
    for place, request in enumerate(wanted):
        alone = Renderer(pipe, STEPS).reference([request])
        torch.testing.assert_close(together.image_samples[place], alone.images[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(together[[place]].latents, alone.latents, rtol=0, atol=1e-4)
        torch.testing.assert_close(together[place : place + 1].path, alone.path, rtol=0, atol=1e-4)
    assert together[[0, 2, 4]].images.shape == (3, 3, 16, 16)
    with pytest.raises(CachesmithError, match="take those of one size at a time"):
        together.images  # noqa: B018


def test_quality_of_several_sizes_is_given_by_size() -> None:
    pipe, wanted = tiny_flux(), mixed()
    evaluator = Evaluator(Renderer(pipe, STEPS), wanted)
    outcome = evaluator(PRESETS["fora"](interval=3))
    scores = compare(evaluator.reference, outcome.pictures)
    assert torch.equal(scores.psnr, outcome.samples) and scores["ssim"].shape == (5,)
    quality = summarise(scores, 0, parts=differing_arguments(wanted))
    assert list(quality.parts) == ["width=16", "width=32"]
    assert quality.parts["width=32"].mean == pytest.approx(float(scores.psnr[[1, 3]].mean()))
    (first, row) = bench(evaluator.renderer, {"fora": (PRESETS["fora"](interval=3), None)}, wanted, repeats=1)
    assert first.psnr == 100 and row.quality == quality
    drawn = {"uncached": evaluator.reference.image_samples, "fora": outcome.pictures.image_samples}
    assert sheet(drawn).height > 0 and grid(drawn["fora"]).height > 0


def test_every_call_gets_as_many_samples_as_it_asked_for() -> None:
    pipe = tiny_flux()
    two = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in text(0).items()}
    with pytest.raises(CachesmithError, match=r"gave 2 samples for 1 request\(s\)"):
        Renderer(pipe, STEPS)(
            [Request({**two, "height": 16, "width": 16, "latents": torch.zeros(2, 64, 16)}, 0)]
        )


class OneGenerator(FluxPipeline):  # type: ignore[misc]
    """Takes no list of generators, as Wan VACE, and draws something without any, as ControlNets of SD3."""

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(args[6], list):
            raise ValueError("no lists")
        latents, ids = super().prepare_latents(*args, **kwargs)
        return latents + 0.1 * torch.randn(latents.shape), ids


def test_what_is_drawn_without_a_generator_is_drawn_again() -> None:
    pipe = OneGenerator.from_pipe(tiny_flux())
    pipe.set_progress_bar_config(disable=True)
    render, asked = Renderer(pipe, 2, 1, height=16, width=16), requests([text(0)], 2, 0)
    state = torch.get_rng_state()
    first, second = render(asked), render(asked)
    assert torch.equal(first.images, second.images) and not torch.equal(first.images[0], first.images[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_are_of_one_call() -> None:
    renderer = Renderer(tiny_flux(), STEPS)
    with pytest.raises(CachesmithError, match="5 requests need 3 calls"):
        renderer.differentiable(mixed())
    images, _ = renderer.differentiable([mixed()[0], mixed()[2]])
    assert images.requires_grad and images.shape == (2, 3, 16, 16)


def test_embeddings_are_given_in_the_dtype_of_the_model() -> None:
    pipe = tiny_flux().to(torch.bfloat16)
    pictures = Renderer(pipe, STEPS)(mixed()[:1])
    assert pictures.images.isfinite().all()


def test_latents_by_path_are_where_a_run_begins(tmp_path: Path) -> None:
    packed = [torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    pipe = tiny_flux()
    for number, each in enumerate(packed):
        np.save(tmp_path / f"{number}.npy", each.numpy())
    rows = [{**text(0), "height": 16, "width": 16, "latents": tmp_path / f"{i}.npy"} for i in range(2)]
    by_path, by_value = (
        Renderer(pipe, STEPS, batch=2)(requests(prompts, 2, 0))
        for prompts in (rows, [{**row, "latents": p} for row, p in zip(rows, packed, strict=True)])
    )
    assert torch.equal(by_path.images, by_value.images)
    assert not torch.equal(by_path.images[0], by_path.images[1])


def test_a_start_in_the_middle_has_a_path(tmp_path: Path) -> None:
    """With strength 0.5 half of the steps are left: the waypoints part that half."""
    parts = tiny_flux().components
    pipe = FluxImg2ImgPipeline(
        **{k: v for k, v in parts.items() if k not in ("image_encoder", "feature_extractor")}
    )
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 16, 16)
    np.save(tmp_path / "a.npy", image.numpy())
    row = {**text(0), "image": tmp_path / "a.npy", "height": 16, "width": 16, "strength": 0.5}
    pictures = Renderer(pipe, 20).reference(requests([row], 2, 0))
    assert pictures.images.shape == (2, 3, 16, 16)
    assert pictures.path.shape[:2] == (2, len(waypoints(10)))


def spoiled(value: float) -> Any:
    pipe = tiny_dit()
    with torch.no_grad():
        pipe.transformer.proj_out_2.weight[0, 0] = value
    return pipe


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_is_not_finite_is_refused_after_its_first_batch(value: float) -> None:
    done: list[int] = []
    renderer = Renderer(spoiled(value), STEPS, batch=1)
    with pytest.raises(
        CachesmithError, match=r"latents that are not finite .* in float32 .*; check its weights"
    ):
        Evaluator(renderer, requests([{"class_labels": 1}], 3, 0), done.append)
    assert done == []
    with pytest.warns(match="left out"), pytest.raises(CachesmithError, match="not finite"):
        bench(renderer, {"fora": (PRESETS["fora"](), None)}, requests([{"class_labels": 1}], 3, 0), repeats=1)


def test_half_precision_names_the_remedy() -> None:
    pipe = spoiled(float("nan"))
    pipe.to(torch.bfloat16)
    with pytest.raises(CachesmithError, match=r"in bfloat16 .*; load it in float32 or bfloat16 \(--dtype\)"):
        Renderer(pipe, STEPS).reference(requests([{"class_labels": 1}], 1, 0))


def test_a_decoder_that_is_not_finite_is_named() -> None:
    pipe = tiny_dit()
    with torch.no_grad():
        pipe.vae.decoder.conv_out.weight[0, 0] = float("nan")
    with pytest.raises(CachesmithError, match="decoder gives pictures that are not finite"):
        Renderer(pipe, STEPS).reference(requests([{"class_labels": 1}], 1, 0))


def test_arguments_are_checked_before_the_first_sample() -> None:
    renderer = Renderer(tiny_dit(), STEPS, batch=1)
    renderer.pipe.transformer.forward = None
    with pytest.raises(CachesmithError, match="class label -1"):
        renderer(requests([{"class_labels": 1}, {"class_labels": -1}], 2, 0))


def test_what_a_modular_pipeline_would_ignore_is_refused() -> None:
    renderer = Renderer(modular(), 8, 1)
    with pytest.raises(CachesmithError, match=r"takes no 'true_cfg_scale'; it takes .*prompt_embeds"):
        renderer(requests([modular_asked(0) | {"true_cfg_scale": 4.0}], 1, 3))


def test_nothing_is_decoded_where_latents_are_asked_for() -> None:
    pipe, wanted = tiny_flux(), mixed()[:1]
    pipe.vae.decode = None
    renderer = Renderer(pipe, STEPS, output_type="latent")
    reference = renderer.reference(wanted)
    assert reference.media == "latent" and torch.equal(reference.images, reference.latents)
    with apply(pipe, PRESETS["fora"](interval=3)):
        cached = renderer(wanted)
    quality = summarise(compare(reference, cached), 0)
    assert quality.ssim is None and 0 < quality.psnr < 100 and quality.latent_error > 0


def test_a_pipeline_without_a_decoder_gives_what_it_drew() -> None:
    whole = tiny_flux()
    pipe = Pixels(whole)
    pictures = Renderer(pipe, STEPS).reference([Request({"label": 1}, 0), Request({"label": 1}, 1)])
    assert pictures.media == "image" and torch.equal(pictures.images, pictures.latents)
    assert pictures.images.shape == (2, 3, 16, 16)


class Pixels:
    """A pipeline with a transformer and a scheduler, whose samples are its pictures."""

    def __init__(self, whole: Any):
        self.transformer, self.scheduler, self.device = (
            whole.transformer,
            whole.scheduler,
            torch.device("cpu"),
        )

    def __call__(self, label: int, generator: Any, num_inference_steps: int, output_type: str = "pil") -> Any:
        drawn = torch.stack([torch.rand(3, 16, 16, generator=each) for each in generator])
        return SimpleNamespace(images=[picture.movedim(0, -1).numpy() for picture in drawn])


def own_loop(pipe: Any) -> Any:
    """The DiT pipeline's loop without guidance and without a decoder, under no_grad as such loops are."""

    @torch.no_grad()
    def sample(class_labels: list[int], generator: Any, num_inference_steps: int) -> torch.Tensor:
        x = torch.stack([torch.randn(4, 8, 8, generator=each) for each in generator])
        pipe.scheduler.set_timesteps(num_inference_steps)
        for t in pipe.scheduler.timesteps:
            noise = pipe.transformer(
                x, timestep=t.expand(len(x)), class_labels=torch.tensor(class_labels)
            ).sample
            x = pipe.scheduler.step(noise[:, :4], t, x).prev_sample
        return (x / 8 + 0.5).clamp(0, 1)

    return sample


def test_a_loop_of_ones_own_runs_under_a_policy() -> None:
    pipe = tiny_dit()
    loop = SamplingLoop(pipe.transformer, pipe.scheduler, own_loop(pipe))
    wanted = requests([{"class_labels": i} for i in (3, 5)], 3, 0)
    evaluator = Evaluator(Renderer(loop, STEPS, batch=2), wanted)
    assert evaluator.path.shape == (3, len(waypoints(STEPS)), 4, 8, 8)
    outcome = evaluator(PRESETS["fora"](interval=4))
    assert outcome.nfc == 2 and 0 < outcome.psnr < 100
    images, path = evaluator.renderer.differentiable(wanted[:2])
    assert torch.allclose(images, evaluator.reference[:2].images, atol=1e-5)
    (gradient,) = torch.autograd.grad(path.sum(), next(pipe.transformer.parameters()))
    assert gradient.any()


class Bare:
    """A scheduler of one's own: timesteps and a step, neither noise levels nor alphas nor a configuration."""

    def set_timesteps(self, steps: int) -> None:
        self.timesteps = torch.linspace(1000, 1, steps)

    def step(self, noise: torch.Tensor, t: torch.Tensor, x: torch.Tensor) -> Any:
        return SimpleNamespace(prev_sample=x - 0.05 * noise)


@pytest.mark.parametrize("scheduler", [Bare(), IPNDMScheduler()])
def test_schedulers_need_not_tell_their_noise_levels(scheduler: Any) -> None:
    pipe = tiny_dit()
    pipe.scheduler = scheduler
    loop = SamplingLoop(pipe.transformer, scheduler, own_loop(pipe))
    evaluator = Evaluator(Renderer(loop, STEPS), requests([{"class_labels": 3}], 1, 0))
    outcome = evaluator(PRESETS["fora"](interval=4))
    assert outcome.nfc == 2 and outcome.psnr < 100
    levels = sampler_key(scheduler).sigmas
    assert len(levels) == STEPS and all(0 <= level <= 1 for level in levels)
    assert list(levels) == sorted(levels, reverse=True)


def tiny_wan() -> Any:
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    transformer = Wan(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=32, freq_dim=256, ffn_dim=32, num_layers=2, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = WanPipeline(
        tokenizer=None, text_encoder=None, vae=vae.eval(), scheduler=scheduler, transformer=transformer.eval()
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_videos_are_measured_by_frame_and_read(tmp_path: Path) -> None:
    pipe = tiny_wan()
    noise = torch.Generator().manual_seed(1)
    embeds = {
        name: torch.randn(1, 8, 32, generator=noise) for name in ("prompt_embeds", "negative_prompt_embeds")
    }
    wanted = requests([{**embeds, "height": 16, "width": 16, "num_frames": 5}], 2, 0)
    evaluator = Evaluator(Renderer(pipe, STEPS), wanted)
    assert evaluator.reference.media == "video" and evaluator.reference.images.shape == (2, 5, 3, 16, 16)
    outcome = evaluator(PRESETS["fora"](interval=4))
    scores = compare(evaluator.reference, outcome.pictures)
    assert set(scores.values) == {"psnr", "ssim", "latent_error", "worst_frame", "frame_change"}
    assert (scores["worst_frame"] <= scores.psnr + 1e-9).all()
    write: Any = export_to_video
    frames = [tile(frame) for frame in evaluator.reference.images[0]]
    write(frames, str(tmp_path / "a.mp4"), macro_block_size=1)
    (tmp_path / "p.jsonl").write_text('{"video": "a.mp4"}')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # imageio leaves its pipes open
        (row,) = read_prompts(tmp_path / "p.jsonl")
        frames = row["video"].load()  # type: ignore[index,union-attr]
        gc.collect()
    assert len(frames) == 5 and frames[0].size == (16, 16)


def test_sound_is_measured() -> None:
    """Waves in [-1, 1], a latent of their own."""
    pipe = tiny_dit()

    def sample(generator: Any, num_inference_steps: int, loud: float = 0.5) -> Any:
        waves = torch.stack([torch.rand(2, 800, generator=each) * 2 - 1 for each in generator])
        return SimpleNamespace(audios=waves * loud, latents=waves[..., :100])

    renderer = Renderer(SamplingLoop(pipe.transformer, pipe.scheduler, sample), STEPS)
    loud, quiet = (renderer.reference([Request({"loud": value}, 0)]) for value in (0.5, 0.4))
    assert loud.media == "audio" and loud.latents.shape == (1, 2, 100)
    scores = compare(loud, quiet)
    error = float((loud.images - quiet.images).double().square().mean()) / 4
    assert scores.psnr.item() == pytest.approx(-10 * np.log10(error)) and "ssim" not in scores.values


def test_pictures_are_found_under_the_name_that_a_pipeline_gives_them() -> None:
    """Kandinsky's pipelines return `image`."""
    found = pictures_of(SimpleNamespace(image=torch.ones(1, 3, 4, 4)), [], "pt", None)
    assert found.media == "image" and found.images.shape == (1, 3, 4, 4)
    with pytest.raises(CachesmithError, match="holds none of images, frames and audios"):
        pictures_of(SimpleNamespace(image=None), [], "pt", None)
