"""Tiny pipelines with random weights: every test builds its own, from a seed."""

from collections.abc import Mapping
from typing import Any

import diffusers
import torch

from cachesmith.policies import (
    Document,
    Forecaster,
    Gate,
    Interval,
    Policy,
    Profile,
    Stack,
    Subspace,
    Taylor,
    Units,
)

diffusers.utils.logging.set_verbosity_error()
torch.set_num_threads(1)

Pipeline = Any


def tiny_vae() -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(4,), norm_num_groups=2, latent_channels=4, layers_per_block=1, sample_size=8
    )


def tiny_dit(seed: int = 0, scheduler: Any = None) -> Pipeline:
    torch.manual_seed(seed)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        sample_size=8,
        norm_num_groups=2,
    )
    vae = tiny_vae()
    pipe = diffusers.DiTPipeline(transformer.eval(), vae.eval(), scheduler or diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_flux(seed: int = 0, scheduler: Any = None) -> Pipeline:
    torch.manual_seed(seed)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    vae = tiny_vae()
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = diffusers.FluxPipeline(scheduler, vae.eval(), transformer=transformer.eval(), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample_dit(
    pipe: Pipeline, seed: int = 0, steps: int = 12, labels: tuple[int, ...] = (1, 2), **kwargs: Any
) -> Any:
    generator = [torch.Generator().manual_seed(seed + i) for i in range(len(labels))]
    return pipe(
        class_labels=list(labels), num_inference_steps=steps, generator=generator, output_type="np", **kwargs
    ).images


def sample_flux(
    pipe: Pipeline, seed: int = 0, steps: int = 10, batch: int = 1, size: int = 16, **kwargs: Any
) -> Any:
    text = torch.Generator().manual_seed(100)
    embeds = {
        "prompt_embeds": torch.randn(1, 3, 32, generator=text).repeat(batch, 1, 1),
        "pooled_prompt_embeds": torch.randn(1, 32, generator=text).repeat(batch, 1),
    }
    embeds = {name: value.to(pipe.transformer.dtype) for name, value in embeds.items()}
    if kwargs.get("true_cfg_scale", 1.0) > 1.0:
        embeds |= {f"negative_{name}": -value for name, value in embeds.items()}
    generator = [torch.Generator().manual_seed(seed + i) for i in range(batch)]
    return (
        pipe(
            **embeds,
            num_inference_steps=steps,
            height=size,
            width=size,
            generator=generator,
            output_type="pt",
            **kwargs,
        )
        .images.float()
        .numpy()
    )


def policy(
    units: Units | None = None,
    gate: Gate | None = None,
    rows: Any = None,
    arrays: Mapping[str, Any] | None = None,
    *,
    axis: str = "step",
    subspace: Subspace | None = None,
    magnitude: Any = None,
    band: Any = None,
    correction: Any = None,
    **document: Any,
) -> Policy:
    """Return a policy with one profile; by default the whole stack at interval 3, Taylor of order 1."""
    forecaster = Forecaster(
        rows=rows or Taylor(order=1), subspace=subspace, band=band, magnitude=magnitude, correction=correction
    )
    gate = gate or Interval(interval=3, warmup=2)
    profile = Profile(units=units or Stack(), axis=axis, gate=gate, forecaster=forecaster)  # type: ignore[arg-type]
    return Policy(Document(name="test", profiles={"default": profile}, **document), dict(arrays or {}))
