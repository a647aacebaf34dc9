"""Sound and music."""

import torch

from cachesmith.zoo.tiny import HEADS, TEXT, Tiny, fixed, plain_call

AUDIO: dict[str, Tiny] = {
    "AceStepTransformer1DModel": Tiny(
        {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
        | {"num_key_value_heads": 2, "head_dim": 8, "in_channels": 24, "audio_acoustic_hidden_dim": 8}
        | {"patch_size": 2, "sliding_window": 16},
        (1, 8, 8),
        lambda model, x, t: model(x, t[None], t[None], TEXT, context_latents=fixed(1, 8, 16)),
    ),
    "LongCatAudioDiTTransformer": Tiny(
        {
            "dit_dim": 32,
            "dit_depth": 3,
            "dit_heads": 2,
            "dit_text_dim": 32,
            "latent_dim": 8,
            "text_conv": False,
        },
        (1, 16, 8),
        plain_call(
            encoder_hidden_states=TEXT,
            encoder_attention_mask=torch.ones(1, 3, dtype=torch.bool),
            attention_mask=torch.ones(1, 16, dtype=torch.bool),
        ),
    ),
    "MiniMaxMusic3Transformer1DModel": Tiny(
        HEADS
        | {"in_channels": 8, "condition_dim": 32, "num_layers": 3, "ff_inner_dim": 32, "rotary_dim": 4}
        | {"fourier_embedding_dim": 8},
        (1, 8, 12),
        plain_call(encoder_hidden_states=fixed(1, 12, 32)),
    ),
    "StableAudio3DiTModel": Tiny(
        {"io_channels": 8, "patch_size": 1, "embed_dim": 32, "depth": 3, "num_heads": 4, "cond_token_dim": 32}
        | {"global_cond_dim": 12, "timestep_features_dim": 16, "ff_mult": 2, "num_memory_tokens": 3}
        | {"use_differential_attention": False},
        (1, 8, 16),
        plain_call(encoder_hidden_states=TEXT, global_hidden_states=fixed(1, 12)),
    ),
    "StableAudioDiTModel": Tiny(
        {
            "sample_size": 16,
            "in_channels": 8,
            "num_layers": 3,
            "attention_head_dim": 16,
            "num_attention_heads": 4,
        }
        | {
            "num_key_value_attention_heads": 2,
            "out_channels": 8,
            "cross_attention_dim": 32,
            "time_proj_dim": 16,
        }
        | {"global_states_input_dim": 24, "cross_attention_input_dim": 32},
        (1, 8, 16),
        plain_call(
            encoder_hidden_states=TEXT,
            global_hidden_states=fixed(1, 1, 24),
            rotary_embedding=(torch.ones(17, 8), torch.zeros(17, 8)),
        ),
    ),
}
