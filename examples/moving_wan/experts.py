"""What is trained on the autoencoder's latents: a text encoder, and the transformer that becomes two experts."""

import torch
from autoencoder import CHANNELS
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

TEXT_WIDTH = 64
FLOW_SHIFT = 3.0
"""Wan's at small sizes: the scheduler spends half of its steps above a noise level of 0.75."""

BOUNDARY = 0.76
"""Noise level from which the first expert is asked: 25 of 50 steps."""


class TextToVelocity(nn.Module):
    """Text encoder and transformer; tokens are encoded as `WanPipeline` does."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.text_encoder = UMT5EncoderModel(UMT5Config(
            vocab_size=vocabulary, d_model=TEXT_WIDTH, d_kv=32, d_ff=128, num_layers=1, num_heads=2, dropout_rate=0.0,
        ))  # fmt: skip
        self.transformer = WanTransformer3DModel(
            patch_size=(1, 1, 1), in_channels=CHANNELS, out_channels=CHANNELS, num_layers=6,
            num_attention_heads=3, attention_head_dim=48, ffn_dim=576, text_dim=TEXT_WIDTH, freq_dim=128,
            rope_max_seq_len=32,
        )  # fmt: skip
        init_transformer(self.transformer)

    def forward(self, noisy: Tensor, level: Tensor, tokens: Tensor) -> Tensor:
        """Return the velocity [B, C, T, H, W] of latents at noise levels [B] for token ids [B, TOKENS]."""
        mask = (tokens != 0).long()
        states = self.text_encoder(tokens, mask).last_hidden_state * mask[..., None]
        velocity: Tensor = self.transformer(noisy, 1000 * level, states, return_dict=False)[0]
        return velocity


def init_transformer(transformer: WanTransformer3DModel) -> None:
    """Zero the modulations, the cross-attentions' ends and the last layer (as DiT's adaLN-Zero, section 3.2)."""
    for block in transformer.blocks:
        nn.init.zeros_(block.scale_shift_table)
    embedder = transformer.condition_embedder
    layers = [embedder.time_proj, transformer.proj_out, *(b.attn2.to_out[0] for b in transformer.blocks)]
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def noise_levels(count: int, lowest: float, highest: float) -> Tensor:
    """Draw levels between two as the shifted sampler visits them: evenly in its time u, level = 3u / (1 + 2u)."""
    low, high = (x / (FLOW_SHIFT - (FLOW_SHIFT - 1) * x) for x in (lowest, highest))
    time = low + (high - low) * torch.rand(count)
    return FLOW_SHIFT * time / (1 + (FLOW_SHIFT - 1) * time)
