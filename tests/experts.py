"""A tiny Wan 2.2: two experts, of which the second takes over on the way."""

from typing import Any

import diffusers
import torch

from tests.tiny import Pipeline

STEPS = 12
"""The boundary of 0.8 is after the sixth of them."""


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


def tiny_wan(boundary_ratio: float | None = 0.8) -> Pipeline:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    ).eval()
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        scheduler=scheduler,
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
