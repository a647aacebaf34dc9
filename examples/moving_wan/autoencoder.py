"""The autoencoder of clips: `AutoencoderKLWan`, small. 9 frames of 32x32 <-> 3 latent frames of 48x2x2."""

import torch
import torch.nn.functional as F
from clips import DIRECTIONS, paths, render, to_video
from diffusers import AutoencoderKLWan
from optimizer import Optimizer, learning_rate
from rich.progress import track
from torch import Tensor

CHANNELS = 48


def build() -> AutoencoderKLWan:
    """Return an untrained autoencoder, 4x in time and 16x in space, of which patches take the first 4x."""
    return AutoencoderKLWan(
        base_dim=20, z_dim=CHANNELS, dim_mult=[1, 1, 2], num_res_blocks=1, temperal_downsample=[True, True],
        in_channels=48, out_channels=48, patch_size=4, scale_factor_temporal=4, scale_factor_spatial=16,
        latents_mean=[0.0] * CHANNELS, latents_std=[1.0] * CHANNELS,
    )  # fmt: skip


def draw(images: Tensor, count: int) -> Tensor:
    """Return `count` random clips [N, T, H, W] in [0, 1]."""
    directions = torch.randint(len(DIRECTIONS), (count,))
    return render(images[torch.randint(len(images), (count,))], paths(directions))


def train(images: Tensor, steps: int) -> AutoencoderKLWan:
    """Fit an autoencoder, then set the latents' mean and standard deviation."""
    vae = build().train()
    _fit(vae, images, steps, 3e-3)
    normalise(vae.eval(), images)
    return vae


def sharpen(vae: AutoencoderKLWan, images: Tensor, steps: int) -> None:
    """Train the decoder alone: the latents stay what they are."""
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    _fit(vae, images, steps, 2e-3)


def _fit(vae: AutoencoderKLWan, images: Tensor, steps: int, rate: float, batch: int = 24) -> None:
    """L1 + squared error + a small KL term."""
    optimizer = Optimizer(vae, rate, inner=lambda name, p: p[0].numel() > 1 and "conv_out" not in name)
    running = 1.0
    for step in track(range(steps), "autoencoder"):
        pixels = to_video(draw(images, batch))
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        error = F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels)
        (error + 1e-6 * posterior.kl().mean()).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step(learning_rate(step, steps))
        running = 0.9 * running + 0.1 * error.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{steps}  error {running:.4f}", flush=True)


@torch.no_grad()
def normalise(vae: AutoencoderKLWan, images: Tensor) -> None:
    """Write into the configuration the mean and standard deviation of every latent channel."""
    latents = vae.encode(to_video(draw(images, 512))).latent_dist.mode().transpose(0, 1).flatten(1)
    vae.register_to_config(latents_mean=latents.mean(1).tolist(), latents_std=latents.std(1).tolist())


@torch.no_grad()
def encode(vae: AutoencoderKLWan, clips: Tensor) -> Tensor:
    """Return the latents [N, 48, 3, 2, 2] of clips [N, T, H, W], mean 0 and variance 1."""
    mean, std = (
        torch.tensor(x)[:, None, None, None] for x in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (vae.encode(to_video(clips)).latent_dist.mode() - mean) / std
