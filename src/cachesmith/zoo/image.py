"""Text to image."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cachesmith.zoo.tiny import (
    FOUR_IDS,
    HEADS,
    IDS,
    LAYERS,
    MASK,
    ROPE_AXES,
    TEXT,
    Tiny,
    fixed,
    plain_call,
    whole,
)

_SIZES: dict[str, Any] = {
    "original_size": 8 * whole(1, 2),
    "target_size": 8 * whole(1, 2),
    "crop_coords": 0 * whole(1, 2),
}


def hunyuan_dit(model: Any, x: Tensor, t: Tensor) -> Any:
    """Two texts, and a table of rotary embeddings."""
    texts = {"encoder_hidden_states": fixed(1, 4, 8), "encoder_hidden_states_t5": fixed(1, 4, 8)}
    masks = {"text_embedding_mask": torch.ones(1, 4), "text_embedding_mask_t5": torch.ones(1, 4)}
    rotary = (torch.ones(16, 8), torch.zeros(16, 8))
    return model(
        x, t[None], **texts, **masks, image_meta_size=fixed(1, 6), style=0 * whole(1), image_rotary_emb=rotary
    )


def omnigen(model: Any, x: Tensor, t: Tensor) -> Any:
    """A language model: tokens of text, time and picture."""
    length = 6 + 1 + 16
    return model(
        x,
        t[None],
        input_ids=torch.arange(6)[None],
        input_img_latents=[],
        input_image_sizes={},
        attention_mask=torch.ones(1, length, length),
        position_ids=torch.arange(length)[None],
    )


FLUX3 = Tiny(
    HEADS
    | LAYERS
    | {"in_channels": 8, "cond_in_channels": 8, "joint_attention_dim": 32, "timestep_channels": 8}
    | {"axes_dims_rope": (4, 4, 4, 4)},
    (1, 16, 8),
    plain_call(encoder_hidden_states=TEXT, img_ids=FOUR_IDS[0], txt_ids=torch.zeros(3, 4)),
)
FLUX3_EDIT = replace(
    FLUX3,
    call=plain_call(
        encoder_hidden_states=TEXT,
        img_ids=FOUR_IDS[0],
        txt_ids=torch.zeros(3, 4),
        image_cond_hidden_states=fixed(1, 16, 8),
        image_cond_ids=FOUR_IDS[0],
    ),
)

IMAGE: dict[str, Tiny] = {
    "BriaFibo2Transformer2DModel": Tiny(
        {"in_channels": 4, "dim": 32, "n_layers": 4, "n_refiner_layers": 1, "n_heads": 2, "cap_feat_dim": 32}
        | {"injection_layer_ids": (1,), "perceiver_num_layers": 1, "axes_dims": (4, 6, 6)}
        | {"min_num_gist_tokens": 4, "max_num_gist_tokens": 8, "gist_step": 4, "axes_lens": (64, 32, 32)},
        (1, 4, 8, 8),
        plain_call(encoder_hidden_states=fixed(1, 2, 3, 32)),
    ),
    "BriaFiboTransformer2DModel": Tiny(
        HEADS
        | LAYERS
        | ROPE_AXES
        | {"in_channels": 8, "text_encoder_dim": 16, "pooled_projection_dim": None},
        (1, 16, 8),
        plain_call(
            encoder_hidden_states=TEXT,
            img_ids=IDS["img_ids"],
            txt_ids=IDS["txt_ids"],
            text_encoder_layers=[fixed(1, 3, 16)] * 4,
        ),
    ),
    "BriaTransformer2DModel": Tiny(
        HEADS | LAYERS | ROPE_AXES | {"in_channels": 8, "pooled_projection_dim": None},
        (1, 16, 8),
        plain_call(encoder_hidden_states=TEXT, img_ids=IDS["img_ids"], txt_ids=IDS["txt_ids"]),
    ),
    "CogView3PlusTransformer2DModel": Tiny(
        HEADS
        | {"in_channels": 4, "num_layers": 3, "text_embed_dim": 32, "time_embed_dim": 8}
        | {"condition_dim": 2, "pos_embed_max_size": 8, "sample_size": 8},
        (1, 4, 8, 8),
        plain_call(encoder_hidden_states=TEXT, **_SIZES),
    ),
    "ErnieImageTransformer2DModel": Tiny(
        {
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_layers": 3,
            "ffn_hidden_size": 32,
            "in_channels": 4,
        }
        | {"out_channels": 4, "patch_size": 1, "text_in_dim": 32, "rope_axes_dim": (8, 4, 4)},
        (1, 4, 4, 4),
        plain_call(text_bth=TEXT, text_lens=torch.tensor([3])),
    ),
    "Flux3Transformer2DModel": FLUX3,
    "GlmImageTransformer2DModel": Tiny(
        HEADS
        | {"in_channels": 4, "out_channels": 4, "num_layers": 3, "text_embed_dim": 32, "time_embed_dim": 8}
        | {"condition_dim": 4, "prior_vq_quantizer_codebook_size": 64},
        (1, 4, 8, 8),
        plain_call(
            encoder_hidden_states=TEXT,
            prior_token_id=torch.arange(16)[None],
            prior_token_drop=torch.zeros(1, 16, dtype=torch.bool),
            target_size=8 * torch.ones(1, 2),
            crop_coords=torch.zeros(1, 2),
        ),
    ),
    "HiDreamImageTransformer2DModel": Tiny(
        {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4}
        | LAYERS
        | {"patch_size": 2, "caption_channels": [32, 4], "text_emb_dim": 32, "num_routed_experts": 2}
        | {"num_activated_experts": 2, "axes_dims_rope": (8, 4, 4), "max_resolution": (32, 32)}
        | {"llama_layers": (0, 1, 0, 1), "force_inference_output": True},
        (1, 4, 8, 8),
        plain_call(
            timestep="timesteps",
            encoder_hidden_states_t5=TEXT,
            encoder_hidden_states_llama3=fixed(2, 1, 3, 4),
            pooled_embeds=fixed(1, 32),
        ),
    ),
    "HunyuanDiT2DModel": Tiny(
        {
            "sample_size": 8,
            "in_channels": 4,
            "num_layers": 6,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
        }
        | {
            "cross_attention_dim": 8,
            "cross_attention_dim_t5": 8,
            "pooled_projection_dim": 4,
            "hidden_size": 16,
        }
        | {"text_len": 4, "text_len_t5": 4, "patch_size": 2, "activation_fn": "gelu-approximate"},
        (1, 4, 8, 8),
        hunyuan_dit,
    ),
    "Ideogram4Transformer2DModel": Tiny(
        {"in_channels": 8, "num_layers": 3, "attention_head_dim": 8, "num_attention_heads": 2}
        | {"intermediate_size": 32, "adaln_dim": 16, "llm_features_dim": 32, "mrope_section": (2, 1, 1)},
        (1, 8, 8),
        plain_call(
            encoder_hidden_states=fixed(1, 8, 32),
            position_ids=torch.arange(8)[None, :, None].repeat(1, 1, 3),
            segment_ids=whole(1, 8),
            indicator=torch.tensor([[3, 3, 3, 3, 2, 2, 2, 2]]),
        ),
    ),
    "Krea2Transformer2DModel": Tiny(
        {"in_channels": 8, "num_layers": 3, "attention_head_dim": 8, "num_attention_heads": 4}
        | {"num_key_value_heads": 2, "intermediate_size": 32, "timestep_embed_dim": 8, "text_hidden_dim": 16}
        | {"num_text_layers": 3, "text_num_attention_heads": 2, "text_num_key_value_heads": 1}
        | {"text_intermediate_size": 16, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1}
        | {"axes_dims_rope": (4, 2, 2)},
        (1, 16, 8),
        plain_call(
            encoder_hidden_states=fixed(1, 3, 3, 16),
            position_ids=fixed(19, 3),
            encoder_attention_mask=MASK.bool(),
        ),
    ),
    "LuminaNextDiT2DModel": Tiny(
        {"sample_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 24, "num_layers": 3}
        | {"num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 16, "learn_sigma": False}
        | {"qk_norm": True, "cross_attention_dim": 32},
        (1, 4, 8, 8),
        plain_call(
            encoder_hidden_states=TEXT,
            encoder_mask=MASK,
            image_rotary_emb=fixed(384, 384, 4),
            cross_attention_kwargs={},
        ),
    ),
    "NucleusMoEImageTransformer2DModel": Tiny(
        HEADS
        | ROPE_AXES
        | {"patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 3, "moe_enabled": False}
        | {"capacity_factors": [8.0] * 3},
        (1, 16, 16),
        plain_call(
            encoder_hidden_states=TEXT, encoder_hidden_states_mask=whole(1, 3), img_shapes=[[(1, 4, 4)]]
        ),
    ),
    "OmniGenTransformer2DModel": Tiny(
        {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 32}
        | {"num_layers": 3, "pad_token_id": 0, "vocab_size": 100, "in_channels": 4, "time_step_dim": 4}
        | {"rope_scaling": {"long_factor": [1, 2], "short_factor": [1, 2]}},
        (1, 4, 8, 8),
        omnigen,
    ),
    "PRXTransformer2DModel": Tiny(
        {"in_channels": 4, "patch_size": 2, "context_in_dim": 32, "hidden_size": 32, "mlp_ratio": 2.0}
        | {"num_heads": 2, "depth": 3, "axes_dim": [8, 8]},
        (1, 4, 8, 8),
        plain_call(encoder_hidden_states=TEXT),
    ),
    "PriorTransformer": Tiny(
        HEADS | {"num_layers": 3, "embedding_dim": 32, "num_embeddings": 3},
        (1, 32),
        plain_call(proj_embedding=fixed(1, 32), encoder_hidden_states=TEXT),
    ),
    "QwenImage21Transformer2DModel": Tiny(
        HEADS
        | {"in_channels": 8, "out_channels": 8, "num_layers": 3, "context_in_dim": 32, "mlp_ratio": 2}
        | {"axes_dims_rope": (4, 6, 6)},
        (1, 16, 8),
        plain_call(
            encoder_hidden_states=TEXT,
            img_shapes=[[(1, 4, 4)]],
            img_mask=torch.tensor([[False] * 3 + [True] * 4]),
            encoder_hidden_states_mask=MASK.bool(),
        ),
    ),
}
