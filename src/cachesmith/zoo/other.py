"""Refiners, super-resolution, and what is no picture, video or sound."""

from typing import Any

import torch
from torch import Tensor

from cachesmith.zoo.tiny import HEADS, MASK, TEXT, Tiny, plain_call


def refiner(model: Any, x: Tensor, t: Tensor) -> Any:
    """A timestep for every token."""
    rotary = torch.ones(1, 16, 32), torch.zeros(1, 16, 32)
    return model(x, TEXT, t.expand(1, 16), video_rotary_emb=rotary, encoder_attention_mask=MASK)


def protein(model: Any, x: Tensor, t: Tensor) -> Any:
    """Coordinates and local latents of a backbone."""
    truth = torch.ones(1, 8, dtype=torch.bool)
    return model(
        x[..., :3],
        x[..., 3:],
        t[None],
        t[None],
        padding_mask=truth,
        conditioning={"is_in_context_conditioning": ~truth, "supports_local_latent": truth},
    )


OTHER: dict[str, Tiny] = {
    "Kandinsky6SRTransformer3DModel": Tiny(
        {"in_visual_dim": 4, "out_visual_dim": 9, "time_dim": 16, "model_dim": 32, "ff_dim": 32}
        | {"num_visual_blocks": 3, "axes_dims": (4, 6, 6), "nabla_window": (1, 1, 1)},
        (1, 1, 8, 8, 9),
        plain_call(),
    ),
    "RFD4ProteinaTransformer": Tiny(
        {"nlayers": 4, "token_dim": 32, "nheads": 2, "dim_cond": 16, "pair_repr_dim": 16, "latent_dim": 5}
        | {"t_emb_dim": 16, "tri_mult_c": 8, "feats_seq": ("xt_bb_ca", "xt_local_latents")}
        | {"feats_cond_seq": ("time_emb_bb_ca",), "feats_pair_repr": ("xt_bb_ca_pair_dists",)}
        | {"feats_pair_cond": ("time_emb_bb_ca",)},
        (1, 8, 8),
        protein,
    ),
    "SanaWMLTX2RefinerTransformer3DModel": Tiny(
        HEADS
        | {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 32, "audio_in_channels": 4}
        | {"audio_out_channels": 4, "audio_num_attention_heads": 2, "audio_attention_head_dim": 8}
        | {"audio_cross_attention_dim": 16, "num_layers": 3, "caption_channels": 32},
        (1, 16, 4),
        refiner,
    ),
    "SanaWMTransformer3DModel": Tiny(
        {"in_channels": 4, "num_layers": 4, "hidden_size": 32, "num_attention_heads": 2, "softmax_every_n": 2}
        | {"linear_head_dim": 16, "caption_channels": 32, "chunk_plucker_channels": 4, "mlp_ratio": 2.0}
        | {"chunk_plucker_post_attn_blocks": 2, "mixed_precision": "fp32", "image_size": 64},
        (1, 4, 2, 4, 4),
        lambda model, x, t: model(x, t.expand(1, 1, 2), TEXT[:, None], mask=MASK),
    ),
}
