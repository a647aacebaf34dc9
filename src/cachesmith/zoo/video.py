"""Text or pictures to video."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cachesmith.zoo.tiny import HEADS, LAYERS, MASK, POOLED, TEXT, Tiny, fixed, plain_call

_WIDE = {"num_attention_heads": 2, "attention_head_dim": 12}
ANYFLOW = _WIDE | {
    "patch_size": (1, 2, 2), "in_channels": 4, "out_channels": 4, "text_dim": 32, "freq_dim": 16, "ffn_dim": 32,
    "num_layers": 3, "cross_attn_norm": True, "rope_max_seq_len": 32, "gate_value": 0.25, "deltatime_type": "r",
}  # fmt: skip


def anyflow(**inputs: Any) -> Any:
    """A timestep for every frame."""

    def call(model: Any, x: Tensor, t: Tensor) -> Any:
        times = t.expand(1, x.shape[1])
        return model(x, timestep=times, r_timestep=times / 2, encoder_hidden_states=TEXT, **inputs)

    return call


def kandinsky5(model: Any, x: Tensor, t: Tensor) -> Any:
    """Positions are given."""
    ranges = tuple(torch.arange(n) for n in (2, 2, 2))
    return model(x, TEXT, t[None], POOLED, visual_rope_pos=ranges, text_rope_pos=torch.arange(3))


KANDINSKY6 = Tiny(
    {"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 32, "in_text_dim2": 32, "time_dim": 16}
    | {
        "model_dim": 32,
        "ff_dim": 32,
        "num_text_blocks": 1,
        "num_visual_blocks": 3,
        "axes_dims": (4, 6, 6),
    }
    | {"visual_cond": False, "in_audio_dim": 8, "out_audio_dim": 8, "model_dim_a": 16, "time_dim_a": 16}
    | {"ff_dim_a": 32, "axes_dims_a": (4, 2, 2)},
    (1, 2, 4, 4, 4),
    plain_call(encoder_hidden_states=TEXT, pooled_projections=POOLED, audio_hidden_states=fixed(1, 4, 8)),
)
KANDINSKY6_SILENT = replace(
    KANDINSKY6, call=plain_call(encoder_hidden_states=TEXT, pooled_projections=POOLED)
)

VIDEO: dict[str, Tiny] = {
    "AllegroTransformer3DModel": Tiny(
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
        }
        | {"cross_attention_dim": 24, "sample_width": 8, "sample_height": 8, "sample_frames": 8}
        | {"caption_channels": 32},
        (1, 4, 2, 8, 8),
        plain_call(encoder_hidden_states=TEXT),
    ),
    "AnyFlowFARTransformer3DModel": Tiny(
        ANYFLOW | {"compressed_patch_size": (1, 4, 4), "full_chunk_limit": 3},
        (1, 4, 4, 8, 8),
        anyflow(chunk_partition=[2, 2]),
        heavy=True,
    ),
    "AnyFlowTransformer3DModel": Tiny(ANYFLOW, (1, 2, 4, 8, 8), anyflow()),
    "ConsisIDTransformer3DModel": Tiny(
        {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4}
        | {"time_embed_dim": 2, "text_embed_dim": 32, "num_layers": 3, "sample_width": 8, "sample_height": 8}
        | {"sample_frames": 8, "patch_size": 2, "temporal_compression_ratio": 4, "max_text_seq_length": 3}
        | {
            "cross_attn_interval": 1,
            "is_train_face": True,
            "cross_attn_dim_head": 1,
            "cross_attn_num_heads": 1,
        }
        | {"LFE_id_dim": 2, "LFE_vit_dim": 2, "LFE_depth": 5, "LFE_dim_head": 8, "LFE_num_heads": 2}
        | {"LFE_num_id_token": 1, "LFE_num_querie": 1, "LFE_output_dim": 10, "LFE_ff_mult": 1}
        | {"LFE_num_scale": 1},
        (1, 1, 4, 8, 8),
        plain_call(encoder_hidden_states=TEXT, id_vit_hidden=[torch.ones(1, 2, 2)], id_cond=torch.ones(1, 2)),
    ),
    "Cosmos3OmniTransformer": Tiny(
        {
            "head_dim": 6,
            "hidden_act": "relu2",
            "hidden_size": 12,
            "intermediate_size": 24,
            "latent_channel": 2,
        }
        | {"latent_patch_size": 1, "num_attention_heads": 2, "num_hidden_layers": 3, "num_key_value_heads": 1}
        | {"patch_latent_dim": 2, "qk_norm_for_text": False, "rope_axes_dim": [1, 1, 1], "vocab_size": 32},
        (1, 2, 4, 1, 1),
        lambda model, x, t: model(
            input_ids=torch.tensor([1, 2]),
            text_indexes=torch.tensor([0, 1]),
            position_ids=torch.zeros(3, 6, dtype=torch.int64),
            und_len=2,
            sequence_length=6,
            vision_tokens=[x],
            vision_token_shapes=[(4, 1, 1)],
            vision_sequence_indexes=torch.arange(2, 6),
            vision_mse_loss_indexes=torch.arange(2, 6),
            vision_timesteps=t.expand(4),
            vision_noisy_frame_indexes=[torch.arange(4)],
        ),
    ),
    "CosmosTransformer3DModel": Tiny(
        _WIDE
        | {"in_channels": 4, "out_channels": 4, "num_layers": 3, "mlp_ratio": 2, "text_embed_dim": 32}
        | {
            "adaln_lora_dim": 4,
            "max_size": (4, 32, 32),
            "patch_size": (1, 2, 2),
            "concat_padding_mask": False,
        }
        | {"extra_pos_embed_type": "learnable"},
        (1, 4, 1, 8, 8),
        plain_call(encoder_hidden_states=TEXT, attention_mask=MASK, fps=30),
    ),
    "EasyAnimateTransformer3DModel": Tiny(
        HEADS
        | {"in_channels": 4, "out_channels": 4, "mmdit_layers": 2, "num_layers": 3, "patch_size": 2}
        | {"sample_height": 60, "sample_width": 90, "text_embed_dim": 32, "time_embed_dim": 8}
        | {"time_position_encoding_type": "3d_rope"},
        (1, 4, 2, 8, 8),
        plain_call(encoder_hidden_states=TEXT),
    ),
    "HeliosTransformer3DModel": Tiny(
        _WIDE
        | {"patch_size": (1, 2, 2), "in_channels": 4, "out_channels": 4, "text_dim": 32, "freq_dim": 16}
        | {"ffn_dim": 32, "num_layers": 3, "cross_attn_norm": True, "rope_dim": (4, 4, 4)}
        | {"has_multi_term_memory_patch": True, "guidance_cross_attn": True, "zero_history_timestep": True},
        (1, 4, 2, 16, 16),
        plain_call(
            encoder_hidden_states=TEXT,
            indices_hidden_states=torch.ones(1, 2),
            indices_latents_history_short=torch.ones(1, 1),
            indices_latents_history_mid=torch.ones(1, 1),
            indices_latents_history_long=torch.ones(1, 4),
            latents_history_short=fixed(1, 4, 1, 16, 16),
            latents_history_mid=fixed(1, 4, 1, 16, 16),
            latents_history_long=fixed(1, 4, 4, 16, 16),
        ),
    ),
    "HunyuanVideoFramepackTransformer3DModel": Tiny(
        HEADS
        | LAYERS
        | {"in_channels": 4, "out_channels": 4, "num_refiner_layers": 1, "patch_size": 2, "patch_size_t": 1}
        | {"text_embed_dim": 32, "pooled_projection_dim": 32, "rope_axes_dim": (4, 6, 6)}
        | {"has_image_proj": True, "image_proj_dim": 16, "has_clean_x_embedder": True},
        (1, 4, 3, 4, 4),
        plain_call(
            encoder_hidden_states=TEXT,
            encoder_attention_mask=MASK,
            pooled_projections=POOLED,
            guidance=torch.tensor([44]),
            image_embeds=fixed(1, 3, 16),
            indices_latents=torch.arange(3.0),
            latents_clean=fixed(1, 4, 2, 4, 4),
            indices_latents_clean=torch.arange(2.0),
            latents_history_2x=fixed(1, 4, 2, 4, 4),
            indices_latents_history_2x=torch.arange(2.0),
            latents_history_4x=fixed(1, 4, 8, 4, 4),
            indices_latents_history_4x=torch.arange(8.0),
        ),
    ),
    "Kandinsky5Transformer3DModel": Tiny(
        {"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 32, "in_text_dim2": 32, "time_dim": 16}
        | {
            "model_dim": 32,
            "ff_dim": 32,
            "num_text_blocks": 1,
            "num_visual_blocks": 3,
            "axes_dims": (4, 6, 6),
        },
        (1, 2, 4, 4, 4),
        kandinsky5,
    ),
    "Kandinsky6Transformer3DModel": KANDINSKY6,
    "LTX2VideoTransformer3DModel": Tiny(
        HEADS
        | {"in_channels": 4, "out_channels": 4, "patch_size": 1, "patch_size_t": 1, "cross_attention_dim": 32}
        | {"audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2}
        | {"audio_attention_head_dim": 8, "audio_cross_attention_dim": 16, "num_layers": 3}
        | {"caption_channels": 32, "rope_double_precision": False},
        (1, 32, 4),
        plain_call(
            audio_hidden_states=fixed(1, 9, 4),
            encoder_hidden_states=TEXT,
            audio_encoder_hidden_states=TEXT,
            encoder_attention_mask=MASK.bool(),
            num_frames=2,
            height=4,
            width=4,
            audio_num_frames=9,
            fps=25.0,
        ),
    ),
    "LatteTransformer3DModel": Tiny(
        HEADS
        | {"sample_size": 8, "num_layers": 3, "patch_size": 2, "caption_channels": 32, "in_channels": 4}
        | {
            "cross_attention_dim": 32,
            "out_channels": 4,
            "attention_bias": True,
            "norm_type": "ada_norm_single",
        }
        | {
            "activation_fn": "gelu-approximate",
            "num_embeds_ada_norm": 1000,
            "norm_elementwise_affine": False,
        },
        (1, 4, 16, 8, 8),
        plain_call(encoder_hidden_states=TEXT, enable_temporal_attentions=True),
    ),
    "MiniMaxH3Transformer3DModel": Tiny(
        HEADS
        | {"hidden_size": 24, "num_layers": 3, "num_refiner_layers": 1, "ffn_dim": 32, "in_channels": 4}
        | {"audio_in_channels": 6, "patch_size": (1, 2, 2), "text_dim": 8, "freq_dim": 8}
        | {"time_embed_hidden_dim": 24, "time_embed_dim": 16, "rope_freq_dim": 2},
        (1, 8, 16),
        lambda model, x, t: model(
            x,
            audio_hidden_states=fixed(1, 6, 6),
            encoder_hidden_states=fixed(1, 4, 8),
            timestep=t.expand(2),
            timestep_indices=torch.tensor([0] * 4 + [1] * 6 + [0] * 8),
            token_tags=torch.tensor([1] * 4 + [2] * 6 + [0] * 8),
            position_ids=fixed(18, 3),
            video_indices=torch.arange(10, 18),
            audio_indices=torch.arange(4, 10),
            text_indices=torch.arange(4),
        ),
    ),
    "MotifVideoTransformer3DModel": Tiny(
        _WIDE
        | LAYERS
        | {"in_channels": 4, "out_channels": 4, "num_decoder_layers": 0, "patch_size": 2, "patch_size_t": 1}
        | {"text_embed_dim": 32, "image_embed_dim": 4, "rope_axes_dim": (4, 4, 4)},
        (1, 4, 2, 4, 4),
        plain_call(encoder_hidden_states=TEXT),
    ),
    "SanaVideoTransformer3DModel": Tiny(
        _WIDE
        | {"in_channels": 4, "out_channels": 4, "num_layers": 3, "num_cross_attention_heads": 2}
        | {
            "cross_attention_head_dim": 12,
            "cross_attention_dim": 24,
            "caption_channels": 32,
            "mlp_ratio": 2.0,
        }
        | {
            "sample_size": 8,
            "patch_size": (1, 2, 2),
            "qk_norm": "rms_norm_across_heads",
            "rope_max_seq_len": 32,
        },
        (1, 4, 2, 8, 8),
        plain_call(encoder_hidden_states=TEXT),
    ),
}
