"""A tiny Wan 2.2: two experts, of which the second takes over on the way."""

from typing import Any

import diffusers
import numpy as np
import torch

from cachesmith.policies import DenoiserProfile, Document, Fitted, Fixed, Forecaster, Policy, Profile
from cachesmith.runtime.models.fingerprint import model_key
from tests.tiny import Pipeline

STEPS = 12
"""The boundary of 0.8 is after the sixth of them."""
HIGH, LOW = "CCFFFF------", "------CCFFCF"
"""Schedules of the two experts."""


def expert(attention_head_dim: int = 12) -> Any:
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=attention_head_dim,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=256,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    ).eval()


def wan_vae(**changes: Any) -> Any:
    """The smallest autoencoder of videos of its class: 8 x 8 pixels and 4 frames become one latent."""
    settings: dict[str, Any] = {
        "base_dim": 3,
        "z_dim": 16,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
    }
    return diffusers.AutoencoderKLWan(**settings | changes)


def unipc() -> Any:
    """The sampler of Wan."""
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def tiny_wan(boundary_ratio: float | None = 0.8) -> Pipeline:
    torch.manual_seed(0)
    vae = wan_vae().eval()
    pipe = diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        scheduler=unipc(),
        transformer=expert(),
        transformer_2=expert(),
        boundary_ratio=boundary_ratio,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe: Pipeline, guidance: float = 4.0) -> torch.Tensor:
    embeds = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(0)
    return pipe(  # type: ignore[no-any-return]
        prompt_embeds=embeds,
        negative_prompt_embeds=-embeds,
        height=16,
        width=16,
        num_frames=5,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        generator=generator,
        output_type="latent",
    ).frames


def two_experts(
    pipe: Pipeline,
    rows: Any = None,
    high: str = HIGH,
    low: str = LOW,
    nfc: float | None = None,
    **document: Any,
) -> Policy:
    """A policy that is bound to both experts. Without `rows`, weights are fitted: they reuse the last output."""
    arrays: dict[str, Any] = {}

    def forecaster(prefix: str) -> Forecaster:
        if rows is not None:
            return Forecaster(rows=rows)
        arrays[f"{prefix}/weights"] = np.ones((1, STEPS, 1), np.float32)
        return Forecaster(rows=Fitted(weights=f"{prefix}/weights"))

    second = DenoiserProfile(gate=Fixed(mask=low), forecaster=forecaster("low"))
    first = Profile(
        gate=Fixed(mask=high), forecaster=forecaster("high"), nfc=nfc, denoisers={"transformer_2": second}
    )
    return Policy(
        Document(
            name="two",
            profiles={"default": first},
            model=model_key(pipe.transformer, pipe),
            models={"transformer_2": model_key(pipe.transformer_2, pipe)},
            **document,
        ),
        arrays,
    )
