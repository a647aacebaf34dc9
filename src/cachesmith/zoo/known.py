"""The families whose rows were written by hand."""

from typing import Any

import torch
from torch import Tensor

from cachesmith.zoo.tiny import (
    FOUR_IDS,
    HEADS,
    IDS,
    LAYERS,
    MASK,
    POOLED,
    ROPE_AXES,
    TEXT,
    Tiny,
    fixed,
    packed,
    plain_call,
)


def sana(model: Any, x: Tensor, t: Tensor) -> Any:
    """Scale the timestep as the pipeline does."""
    return model(x, encoder_hidden_states=TEXT, timestep=t[None] * model.config.timestep_scale)


def auraflow(model: Any, x: Tensor, t: Tensor) -> Any:
    """Time on [0, 1]."""
    return model(x, encoder_hidden_states=TEXT, timestep=torch.tensor([t / 1000]))


def lumina(model: Any, x: Tensor, t: Tensor) -> Any:
    """Time runs the other way."""
    return model(x, 1 - t[None] / 1000, TEXT, MASK.bool())


def z_image(model: Any, x: Tensor, t: Tensor) -> Any:
    """Lists of latents, and time that runs the other way."""
    return model([x[0]], (1000 - t[None]) / 1000, [TEXT[0]], return_dict=False)


KNOWN: dict[str, Tiny] = {
    "AuraFlowTransformer2DModel": Tiny(
        HEADS
        | {"sample_size": 8, "num_mmdit_layers": 2, "num_single_dit_layers": 2, "joint_attention_dim": 32}
        | {"caption_projection_dim": 32, "pos_embed_max_size": 32},
        (1, 4, 8, 8),
        auraflow,
    ),
    "ChromaTransformer2DModel": Tiny(
        HEADS
        | LAYERS
        | ROPE_AXES
        | {
            "in_channels": 8,
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 8,
            "approximator_layers": 1,
        },
        (1, 16, 8),
        packed(**IDS, attention_mask=torch.ones(1, 19).bool()),
    ),
    "CogVideoXTransformer3DModel": Tiny(
        HEADS
        | {"in_channels": 4, "out_channels": 4, "time_embed_dim": 8, "text_embed_dim": 32, "num_layers": 3}
        | {"sample_width": 8, "sample_height": 8, "sample_frames": 8, "max_text_seq_length": 3},
        (1, 2, 4, 8, 8),
        plain_call(
            encoder_hidden_states=TEXT,
        ),
    ),
    "CogView4Transformer2DModel": Tiny(
        HEADS
        | {"in_channels": 4, "out_channels": 4, "num_layers": 3, "text_embed_dim": 32, "time_embed_dim": 8}
        | {"condition_dim": 4, "pos_embed_max_size": 8, "sample_size": 8, "rope_axes_dim": (8, 8)},
        (1, 4, 8, 8),
        plain_call(
            encoder_hidden_states=TEXT,
            original_size=torch.tensor([[8, 8]]),
            target_size=torch.tensor([[8, 8]]),
            crop_coords=torch.tensor([[0, 0]]),
        ),
    ),
    "DiTTransformer2DModel": Tiny(
        HEADS
        | {"in_channels": 4, "out_channels": 4, "num_layers": 3, "sample_size": 8, "norm_num_groups": 2},
        (1, 4, 8, 8),
        plain_call(class_labels=torch.tensor([1])),
    ),
    "Flux2Transformer2DModel": Tiny(
        HEADS
        | LAYERS
        | {"in_channels": 8, "joint_attention_dim": 32, "timestep_guidance_channels": 8}
        | {"axes_dims_rope": (4, 4, 4, 4)},
        (1, 16, 8),
        packed(img_ids=FOUR_IDS, txt_ids=torch.zeros(1, 3, 4), guidance=torch.tensor([1.0])),
    ),
    "FluxTransformer2DModel": Tiny(
        HEADS | LAYERS | ROPE_AXES | {"in_channels": 8, "pooled_projection_dim": 32},
        (1, 16, 8),
        packed(**IDS, pooled_projections=POOLED),
    ),
    "HunyuanImageTransformer2DModel": Tiny(
        HEADS
        | LAYERS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_refiner_layers": 1,
            "text_embed_dim": 32,
            "rope_axes_dim": (8, 8),
        },
        (1, 4, 4, 4),
        plain_call(encoder_hidden_states=TEXT, encoder_attention_mask=MASK),
    ),
    "HunyuanVideo15Transformer3DModel": Tiny(
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "num_refiner_layers": 1,
            "text_embed_dim": 32,
        }
        | {"text_embed_2_dim": 32, "image_embed_dim": 16, "rope_axes_dim": (4, 6, 6), "target_size": 16},
        (1, 4, 2, 4, 4),
        plain_call(
            encoder_hidden_states=TEXT,
            encoder_attention_mask=MASK,
            encoder_hidden_states_2=fixed(1, 2, 32),
            encoder_attention_mask_2=torch.ones(1, 2),
            image_embeds=fixed(1, 2, 16),
        ),
    ),
    "HunyuanVideoTransformer3DModel": Tiny(
        HEADS
        | LAYERS
        | {"in_channels": 4, "out_channels": 4, "num_refiner_layers": 1, "text_embed_dim": 32}
        | {"pooled_projection_dim": 32, "rope_axes_dim": (4, 6, 6), "guidance_embeds": False},
        (1, 4, 2, 8, 8),
        plain_call(encoder_hidden_states=TEXT, encoder_attention_mask=MASK, pooled_projections=POOLED),
    ),
    "LTXVideoTransformer3DModel": Tiny(
        HEADS
        | {
            "in_channels": 8,
            "out_channels": 8,
            "cross_attention_dim": 32,
            "num_layers": 3,
            "caption_channels": 32,
        },
        (1, 16, 8),
        plain_call(encoder_hidden_states=TEXT, encoder_attention_mask=MASK, num_frames=1, height=4, width=4),
    ),
    "LongCatImageTransformer2DModel": Tiny(
        HEADS | LAYERS | ROPE_AXES | {"in_channels": 8, "pooled_projection_dim": 32},
        (1, 16, 8),
        packed(**IDS),
    ),
    "Lumina2Transformer2DModel": Tiny(
        {"sample_size": 8, "in_channels": 4, "hidden_size": 24, "num_layers": 3, "num_refiner_layers": 1}
        | {"num_attention_heads": 2, "num_kv_heads": 2, "multiple_of": 2, "axes_dim_rope": (4, 4, 4)}
        | {"axes_lens": (32, 32, 32), "cap_feat_dim": 32},
        (1, 4, 8, 8),
        lumina,
        turn=-1.0,
    ),
    "MochiTransformer3DModel": Tiny(
        HEADS
        | {"num_layers": 3, "pooled_projection_dim": 32, "in_channels": 4, "text_embed_dim": 32}
        | {"time_embed_dim": 4, "max_sequence_length": 3},
        (1, 4, 2, 8, 8),
        plain_call(encoder_hidden_states=TEXT, encoder_attention_mask=MASK.bool()),
    ),
    "OvisImageTransformer2DModel": Tiny(
        HEADS | LAYERS | ROPE_AXES | {"in_channels": 8, "out_channels": 8}, (1, 16, 8), packed(**IDS)
    ),
    "PixArtTransformer2DModel": Tiny(
        HEADS
        | {"in_channels": 4, "out_channels": 4, "num_layers": 3, "cross_attention_dim": 32, "sample_size": 8}
        | {"caption_channels": 32, "norm_num_groups": 2, "use_additional_conditions": False},
        (1, 4, 8, 8),
        plain_call(encoder_hidden_states=TEXT, added_cond_kwargs={"resolution": None, "aspect_ratio": None}),
    ),
    "QwenImageTransformer2DModel": Tiny(
        HEADS | ROPE_AXES | {"in_channels": 8, "out_channels": 2, "num_layers": 3},
        (1, 16, 8),
        packed(encoder_hidden_states_mask=MASK.bool(), img_shapes=[[(1, 4, 4)]]),
    ),
    "SD3Transformer2DModel": Tiny(
        HEADS
        | {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 3, "joint_attention_dim": 32}
        | {"caption_projection_dim": 32, "pooled_projection_dim": 32, "dual_attention_layers": (0,)},
        (1, 4, 8, 8),
        plain_call(encoder_hidden_states=TEXT, pooled_projections=POOLED),
    ),
    "SanaTransformer2DModel": Tiny(
        HEADS
        | {"in_channels": 4, "out_channels": 4, "num_layers": 3, "num_cross_attention_heads": 2}
        | {
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 32,
            "sample_size": 8,
        },
        (1, 4, 8, 8),
        sana,
    ),
    "WanTransformer3DModel": Tiny(
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 32,
            "freq_dim": 16,
            "ffn_dim": 32,
            "num_layers": 3,
        },
        (1, 4, 2, 8, 8),
        plain_call(
            encoder_hidden_states=TEXT,
        ),
    ),
    "ZImageTransformer2DModel": Tiny(
        {"in_channels": 4, "dim": 32, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
        | {"cap_feat_dim": 32, "axes_dims": [4, 6, 6], "axes_lens": [128, 64, 64]},
        (1, 4, 1, 8, 8),
        z_image,
        turn=-1.0,
    ),
}
