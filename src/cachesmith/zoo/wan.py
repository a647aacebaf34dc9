"""The family of Wan."""

from functools import cache
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from torch import Tensor

from cachesmith.zoo.tiny import TEXT, Tiny, fixed, plain_call

_WAN = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
    "out_channels": 4, "text_dim": 32, "freq_dim": 16, "ffn_dim": 32, "num_layers": 3, "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32,
}  # fmt: skip


GRID = torch.tensor([[2, 2, 2]])


def _reference(cache: WanAnimate2KVCache) -> dict[str, Any]:
    """What the call that reads the reference picture into the cache and those that denoise have in common."""
    return {
        "encoder_hidden_states": [fixed(8, 32)],
        "condition_latents": [fixed(20, 2, 4, 4)],
        "encoder_hidden_states_image": fixed(1, 4, 1280),
        "kv_cache": cache,
        "seq_len": 8,
    }


@cache
def _filled(model: Any) -> WanAnimate2KVCache:
    """Return the cache that the reference picture was read into."""
    layers = WanAnimate2KVCache(3)
    with torch.no_grad():
        model.forward(
            [fixed(16, 2, 4, 4)],
            torch.tensor([1.0]),
            **_reference(layers),
            kv_cache_mode="extract",
            offset_grid_sizes=GRID,
        )
    return layers


def animate2(model: Any, x: Tensor, t: Tensor) -> Any:
    """Denoise with the keys and values of the reference picture."""
    return model(
        [x[0]],
        t[None],
        **_reference(_filled(model)),
        kv_cache_mode="cached",
        reference_grid_sizes=GRID,
        origin_len=5,
        origin_area=[32, 32],
    )


WAN: dict[str, Tiny] = {
    "ChronoEditTransformer3DModel": Tiny(
        _WAN | {"rope_temporal_skip_len": 8}, (1, 4, 2, 8, 8), plain_call(encoder_hidden_states=TEXT)
    ),
    "SkyReelsV2Transformer3DModel": Tiny(_WAN, (1, 4, 2, 8, 8), plain_call(encoder_hidden_states=TEXT)),
    "WanAnimate2Transformer3DModel": Tiny(
        {"patch_size": (1, 2, 2), "text_len": 16, "in_dim": 36, "dim": 128, "ffn_dim": 64, "freq_dim": 64}
        | {"text_dim": 32, "out_dim": 16, "num_heads": 4, "num_layers": 3, "use_img_emb": True},
        (1, 16, 2, 4, 4),
        animate2,
        heavy=True,
        prepare=_filled,
    ),
    "WanAnimateTransformer3DModel": Tiny(
        _WAN
        | {
            "in_channels": 12,
            "latent_channels": 4,
            "image_dim": 16,
            "num_layers": 4,
            "motion_encoder_size": 16,
        }
        | {
            "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16},
            "motion_style_dim": 8,
            "motion_dim": 4,
        }
        | {"motion_encoder_dim": 16, "face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2}
        | {"inject_face_latents_blocks": 2},
        (1, 12, 5, 8, 8),
        plain_call(
            encoder_hidden_states=TEXT,
            encoder_hidden_states_image=fixed(1, 3, 16),
            pose_hidden_states=fixed(1, 4, 4, 8, 8),
            face_pixel_values=fixed(1, 3, 13, 16, 16),
        ),
    ),
    "WanVACETransformer3DModel": Tiny(
        _WAN
        | {
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 4,
            "vace_layers": [0, 2],
            "vace_in_channels": 48,
        },
        (1, 16, 2, 8, 8),
        plain_call(encoder_hidden_states=TEXT, control_hidden_states=fixed(1, 48, 2, 8, 8)),
    ),
}
