"""An autoencoder that pools, where pipelines insist on pictures of a million pixels."""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor


class PoolingVAE(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """One latent for a square of 2 ** len(temperal_downsample) pixels, as AutoencoderKLQwenImage is asked for it."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        z_dim: int = 4,
        temperal_downsample: tuple[bool, ...] = (False,) * 6,
        latents_mean: tuple[float, ...] = (0.0,) * 4,
        latents_std: tuple[float, ...] = (1.0,) * 4,
    ):
        super().__init__()
        self.temperal_downsample = temperal_downsample
        self.side = 2 ** len(temperal_downsample)
        self.mix = torch.nn.Linear(3, z_dim)
        self.unmix = torch.nn.Linear(z_dim, 3)

    def encode(self, x: Tensor) -> Any:
        """[N, 3, F, H, W] -> a distribution of [N, z_dim, F, H / side, W / side]."""
        pooled = torch.nn.functional.avg_pool3d(x, (1, self.side, self.side))
        mean = self.mix(pooled.movedim(1, -1)).movedim(-1, 1)
        return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(torch.cat([mean, mean - 30], 1)))

    def decode(self, z: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        """Repeat every latent."""
        pixels = self.unmix(z.movedim(1, -1)).movedim(-1, 1)
        return (pixels.repeat_interleave(self.side, -1).repeat_interleave(self.side, -2),)
