"""One block of the published size of each kind, of models that engines are built of; the other blocks are copies."""

from collections.abc import Mapping
from typing import Any

import diffusers
import torch

TOKENS, TEXT = 64, 32


def flux() -> tuple[Any, dict[str, Any]]:
    """FLUX.1-dev."""
    model = diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    tensors = {
        "hidden_states": (2, TOKENS, 64),
        "encoder_hidden_states": (2, 512, 4096),
        "pooled_projections": (2, 768),
    }
    more = {"timestep": torch.ones(2), "guidance": torch.ones(2)}
    return model, noise(tensors) | more | {"img_ids": torch.zeros(TOKENS, 3), "txt_ids": torch.zeros(512, 3)}


def qwen_image() -> tuple[Any, dict[str, Any]]:
    """Qwen-Image and its edits."""
    model = diffusers.QwenImageTransformer2DModel(num_layers=1)
    tensors = {"hidden_states": (2, TOKENS, 64), "encoder_hidden_states": (2, TEXT, 3584)}
    more = {"timestep": torch.ones(2), "encoder_hidden_states_mask": torch.ones(2, TEXT, dtype=torch.bool)}
    return model, noise(tensors) | more | {"img_shapes": [[(1, 8, 8)]] * 2}


def wan() -> tuple[Any, dict[str, Any]]:
    """Each expert of Wan 2.2, 14B."""
    model = diffusers.WanTransformer3DModel(num_layers=1)
    tensors = {"hidden_states": (2, 16, 3, 8, 8), "encoder_hidden_states": (2, 512, 4096)}
    return model, noise(tensors) | {"timestep": torch.ones(2)}


def sd35() -> tuple[Any, dict[str, Any]]:
    """Stable Diffusion 3.5 large."""
    model = diffusers.SD3Transformer2DModel(
        sample_size=128,
        num_layers=2,
        num_attention_heads=38,
        joint_attention_dim=4096,
        caption_projection_dim=2432,
        pooled_projection_dim=2048,
        out_channels=16,
        pos_embed_max_size=192,
        qk_norm="rms_norm",
    )
    tensors = {
        "hidden_states": (2, 16, 16, 16),
        "encoder_hidden_states": (2, TEXT, 4096),
        "pooled_projections": (2, 2048),
    }
    return model, noise(tensors) | {"timestep": torch.ones(2)}


def hunyuan_video() -> tuple[Any, dict[str, Any]]:
    """HunyuanVideo."""
    model = diffusers.HunyuanVideoTransformer3DModel(num_layers=1, num_single_layers=1, num_refiner_layers=1)
    tensors = {
        "hidden_states": (2, 16, 2, 16, 16),
        "encoder_hidden_states": (2, TEXT, 4096),
        "pooled_projections": (2, 768),
        "guidance": (2,),
    }
    more = {"timestep": torch.ones(2), "encoder_attention_mask": torch.ones(2, TEXT)}
    return model, noise(tensors) | more


def noise(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Normal tensors of these shapes, bfloat16."""
    return {name: torch.randn(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}


TRUE_SIZE = {
    "FluxTransformer2DModel": flux,
    "QwenImageTransformer2DModel": qwen_image,
    "WanTransformer3DModel": wan,
    "SD3Transformer2DModel": sd35,
    "HunyuanVideoTransformer3DModel": hunyuan_video,
}
