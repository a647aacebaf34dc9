"""Published transformers without weights, on the meta device: their tables are what our accounting is checked on."""

from typing import Any

import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel


def dit_xl_2() -> tuple[Any, dict[str, Any]]:
    """DiT-XL/2 at 256 x 256 (arXiv 2212.09748): the transformer, and one call's arguments with CFG in its batch."""
    with torch.device("meta"):
        transformer = DiTTransformer2DModel(
            num_attention_heads=16, attention_head_dim=72, num_layers=28, in_channels=4, out_channels=8,
            sample_size=32, patch_size=2, attention_bias=True, activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000, norm_type="ada_norm_zero", norm_elementwise_affine=False,
        )  # fmt: skip
        labels = torch.zeros(2, dtype=torch.long)
        arguments = {"hidden_states": torch.zeros(2, 4, 32, 32), "timestep": labels, "class_labels": labels}
    return transformer.eval(), arguments


def dit_modulation() -> int:
    """Multiply-adds of DiT-XL/2's adaLN layers (six outputs, 28 blocks) in one call with guidance."""
    return 28 * 6 * 1152**2 * 2


def flux_dev(image_tokens: int = 4096, text_tokens: int = 512) -> tuple[Any, dict[str, Any]]:
    """FLUX.1-dev (guidance-distilled, so one branch): the transformer, and one call's arguments."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True)
        arguments = {
            "hidden_states": torch.zeros(1, image_tokens, 64),
            "encoder_hidden_states": torch.zeros(1, text_tokens, 4096),
            "pooled_projections": torch.zeros(1, 768),
            "timestep": torch.zeros(1),
            "guidance": torch.zeros(1),
            "img_ids": torch.zeros(image_tokens, 3),
            "txt_ids": torch.zeros(text_tokens, 3),
        }
    return transformer.eval(), arguments
