"""Image models that edit, and parts of other networks."""

import torch

from cachesmith.zoo.tiny import HEADS, TEXT, Tiny, fixed, plain_call

_JOY = {
    "patch_size": [1, 2, 2], "in_channels": 8, "hidden_size": 32, "num_attention_heads": 2, "text_dim": 32,
    "num_layers": 3, "rope_dim_list": [4, 6, 6], "theta": 256,
}  # fmt: skip

EDITS: dict[str, Tiny] = {
    "JoyImageEditPlusTransformer3DModel": Tiny(
        _JOY, (1, 2, 8, 1, 2, 2), plain_call(encoder_hidden_states=TEXT, shape_list=[[(1, 1, 1), (1, 1, 1)]])
    ),
    "JoyImageEditTransformer3DModel": Tiny(_JOY, (1, 8, 1, 4, 4), plain_call(encoder_hidden_states=TEXT)),
    "Transformer2DModel": Tiny(
        HEADS | {"in_channels": 32, "num_layers": 3, "cross_attention_dim": 32, "norm_num_groups": 4},
        (1, 32, 4, 4),
        plain_call(encoder_hidden_states=TEXT),
    ),
    "DreamLiteTransformer2DModel": Tiny(
        HEADS
        | {"in_channels": 32, "num_layers": 3, "cross_attention_dim": 32, "norm_num_groups": 4, "ff_mult": 2},
        (1, 32, 4, 4),
        plain_call(encoder_hidden_states=TEXT),
    ),
    "TransformerTemporalModel": Tiny(
        HEADS | {"in_channels": 4, "num_layers": 3, "norm_num_groups": 1},
        (2, 4, 4, 4),
        plain_call(num_frames=2),
    ),
    "T5FilmDecoder": Tiny(
        {"input_dims": 8, "targets_length": 16, "d_model": 16, "num_layers": 3, "num_heads": 2, "d_kv": 8}
        | {"d_ff": 32},
        (1, 16, 8),
        plain_call(
            latents="decoder_input_tokens",
            timestep="decoder_noise_time",
            encodings_and_masks=[(fixed(1, 4, 16), torch.ones(1, 4))],
        ),
    ),
}
