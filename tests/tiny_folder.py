"""A tiny random pipeline as `save_pretrained` writes it, with pictures large enough for SSIM."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, DiTPipeline, DiTTransformer2DModel


def save_tiny(folder: Path) -> Path:
    """Two blocks of width 32 on 8 x 8 latents, grey pictures of 16 x 16 pixels."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=2, sample_size=16, block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False,
    )  # fmt: skip
    dit = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=2, in_channels=2, out_channels=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=1000, activation_fn="gelu-approximate", norm_num_groups=2,
    )  # fmt: skip
    pipe = DiTPipeline(transformer=dit, vae=vae, scheduler=DDIMScheduler(clip_sample=False))
    pipe.save_pretrained(folder)
    return folder


def open_tiny(folder: Path) -> Any:
    torch.set_num_threads(1)
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe
