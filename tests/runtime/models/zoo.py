"""A tiny random transformer of every supported class, and how its pipeline calls it.

`call(model, x, t)` gets latents and the scheduler's timestep, and returns what the scheduler steps with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

Call = Callable[[Any, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Tiny:
    """Configuration, shape of the latents, and call."""

    config: dict[str, Any]
    shape: tuple[int, ...]
    call: Call

    def build(self, name: str) -> Any:
        torch.manual_seed(0)
        model = getattr(diffusers, name)(**self.config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.abs().max() == 0:  # some output layers begin at zero
                    parameter.normal_(std=0.02)
        return model


def fixed(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


TEXT = fixed(1, 3, 32)
POOLED = fixed(1, 32)
MASK = torch.ones(1, 3)
HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
WIDE = {"num_attention_heads": 2, "attention_head_dim": 20}  # heads that hold three-axis rotary embeddings
LAYERS = {"num_layers": 2, "num_single_layers": 2}


def packed(**extra: Any) -> Call:
    """Latents as tokens, timestep on [0, 1]: the family of FLUX."""

    def call(model: Any, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = model(x, encoder_hidden_states=TEXT, timestep=t[None] / 1000, **extra).sample
        return out

    return call


def plain(**extra: Any) -> Call:
    """Latents as a picture or video, the scheduler's own timestep."""

    def call(model: Any, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = model(
            x,
            encoder_hidden_states=extra.get("text", TEXT),
            timestep=t[None],
            **{k: v for k, v in extra.items() if k != "text"},
        ).sample
        return out

    return call


def sana(model: Any, x: Tensor, t: Tensor) -> Tensor:
    timestep = t[None] * model.config.timestep_scale
    out: Tensor = model(x, encoder_hidden_states=TEXT, timestep=timestep).sample
    return out


def auraflow(model: Any, x: Tensor, t: Tensor) -> Tensor:
    out: Tensor = model(x, encoder_hidden_states=TEXT, timestep=torch.tensor([t / 1000])).sample
    return out


def lumina(model: Any, x: Tensor, t: Tensor) -> Tensor:
    out: Tensor = model(x, 1 - t[None] / 1000, TEXT, MASK.bool()).sample
    return -out


def z_image(model: Any, x: Tensor, t: Tensor) -> Tensor:
    out: Tensor = model([x[0]], (1000 - t[None]) / 1000, [TEXT[0]], return_dict=False)[0][0]
    return -out[None]


def dit(model: Any, x: Tensor, t: Tensor) -> Tensor:
    out: Tensor = model(x, timestep=t[None], class_labels=torch.tensor([1])).sample
    return out


IMAGE_IDS = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
FOUR_IDS = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0), torch.zeros(1))[None]
IDS = {"img_ids": IMAGE_IDS, "txt_ids": torch.zeros(3, 3)}
AXES = {"axes_dims_rope": (4, 4, 8), "joint_attention_dim": 32}

ZOO: dict[str, Tiny] = {
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
        | AXES
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
        plain(),
    ),
    "CogView4Transformer2DModel": Tiny(
        HEADS
        | {"in_channels": 4, "out_channels": 4, "num_layers": 3, "text_embed_dim": 32, "time_embed_dim": 8}
        | {"condition_dim": 4, "pos_embed_max_size": 8, "sample_size": 8, "rope_axes_dim": (8, 8)},
        (1, 4, 8, 8),
        plain(
            original_size=torch.tensor([[8, 8]]),
            target_size=torch.tensor([[8, 8]]),
            crop_coords=torch.tensor([[0, 0]]),
        ),
    ),
    "DiTTransformer2DModel": Tiny(
        HEADS
        | {"in_channels": 4, "out_channels": 4, "num_layers": 3, "sample_size": 8, "norm_num_groups": 2},
        (1, 4, 8, 8),
        dit,
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
        HEADS | LAYERS | AXES | {"in_channels": 8, "pooled_projection_dim": 32},
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
        plain(encoder_attention_mask=MASK),
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
        plain(
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
        plain(encoder_attention_mask=MASK, pooled_projections=POOLED),
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
        plain(encoder_attention_mask=MASK, num_frames=1, height=4, width=4),
    ),
    "LongCatImageTransformer2DModel": Tiny(
        HEADS | LAYERS | AXES | {"in_channels": 8, "pooled_projection_dim": 32},
        (1, 16, 8),
        packed(**IDS),
    ),
    "Lumina2Transformer2DModel": Tiny(
        {"sample_size": 8, "in_channels": 4, "hidden_size": 24, "num_layers": 3, "num_refiner_layers": 1}
        | {"num_attention_heads": 2, "num_kv_heads": 2, "multiple_of": 2, "axes_dim_rope": (4, 4, 4)}
        | {"axes_lens": (32, 32, 32), "cap_feat_dim": 32},
        (1, 4, 8, 8),
        lumina,
    ),
    "MochiTransformer3DModel": Tiny(
        HEADS
        | {"num_layers": 3, "pooled_projection_dim": 32, "in_channels": 4, "text_embed_dim": 32}
        | {"time_embed_dim": 4, "max_sequence_length": 3},
        (1, 4, 2, 8, 8),
        plain(encoder_attention_mask=MASK.bool()),
    ),
    "OvisImageTransformer2DModel": Tiny(
        HEADS | LAYERS | AXES | {"in_channels": 8, "out_channels": 8}, (1, 16, 8), packed(**IDS)
    ),
    "PixArtTransformer2DModel": Tiny(
        HEADS
        | {"in_channels": 4, "out_channels": 4, "num_layers": 3, "cross_attention_dim": 32, "sample_size": 8}
        | {"caption_channels": 32, "norm_num_groups": 2, "use_additional_conditions": False},
        (1, 4, 8, 8),
        plain(added_cond_kwargs={"resolution": None, "aspect_ratio": None}),
    ),
    "QwenImageTransformer2DModel": Tiny(
        HEADS | AXES | {"in_channels": 8, "out_channels": 2, "num_layers": 3},
        (1, 16, 8),
        packed(encoder_hidden_states_mask=MASK.bool(), img_shapes=[[(1, 4, 4)]]),
    ),
    "SD3Transformer2DModel": Tiny(
        HEADS
        | {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 3, "joint_attention_dim": 32}
        | {"caption_projection_dim": 32, "pooled_projection_dim": 32, "dual_attention_layers": (0,)},
        (1, 4, 8, 8),
        plain(pooled_projections=POOLED),
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
        plain(),
    ),
    "ZImageTransformer2DModel": Tiny(
        {"in_channels": 4, "dim": 32, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
        | {"cap_feat_dim": 32, "axes_dims": [4, 6, 6], "axes_lens": [128, 64, 64]},
        (1, 4, 1, 8, 8),
        z_image,
    ),
}
