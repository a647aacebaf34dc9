"""The autoencoder of Qwen-Image, made small: 64x64 pixels in three colours <-> 16x16 latents of four channels."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from data import to_float
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from rich.progress import track
from torch import Tensor

CHANNELS, CROP, BATCH = 4, 32, 16
KL = 1e-4
"""Weight of the divergence, per latent; the losses on pixels are means, too."""


def build(
    mean: Sequence[float] = (0.0,) * CHANNELS, std: Sequence[float] = (1.0,) * CHANNELS
) -> AutoencoderKLQwenImage:
    """Return an untrained autoencoder whose latents have this mean and standard deviation, by channel."""
    return AutoencoderKLQwenImage(
        base_dim=12, z_dim=CHANNELS, dim_mult=[1, 2, 3], num_res_blocks=1, temperal_downsample=[False, False],
        latents_mean=list(mean), latents_std=list(std),
    )  # fmt: skip


@contextmanager
def single_frames() -> Iterator[None]:
    """Convolve in two dimensions: of a video of one frame the others are zeros, and cost two thirds of the time."""

    def forward(self: QwenImageCausalConv3d, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        kernel = self.weight[:, :, -1]
        return F.conv2d(x[:, :, 0], kernel, self.bias, padding=kernel.shape[-1] // 2)[:, :, None]

    whole = QwenImageCausalConv3d.forward
    QwenImageCausalConv3d.forward = forward
    try:
        yield
    finally:
        QwenImageCausalConv3d.forward = whole


def train(
    vae: AutoencoderKLQwenImage, pictures: Tensor, minutes: float, saved: Path
) -> AutoencoderKLQwenImage:
    """Fit crops of uint8 pictures [N, 3, 64, 64] for some minutes, the last fifth whole pictures; write `saved`."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99))
    began, running = time.monotonic(), 1.0
    with single_frames():
        for step in track(range(10**6), "autoencoder"):
            part = (time.monotonic() - began) / (60 * minutes)
            if part >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * min(1.0, (step + 1) / 50, 3 * (1 - part))
            loss = _loss(vae, _crops(pictures, whole=part > 0.8))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            running = 0.98 * running + 0.02 * loss.item()
            if step % 100 == 0:
                print(f"step {step}  loss {running:.4f}  {part:.0%}", flush=True)
    torch.save(vae.state_dict(), saved)
    return vae


def restored(saved: Path) -> AutoencoderKLQwenImage:
    """Return what `train` wrote."""
    vae = build()
    vae.load_state_dict(torch.load(saved, weights_only=True))
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKLQwenImage, pictures: Tensor) -> Tensor:
    """Return the mean latents [N, 4, 16, 16] of uint8 pictures [N, 3, 64, 64], not scaled."""
    with single_frames():
        means = [vae.encode(to_float(part)[:, :, None]).latent_dist.mode() for part in pictures.split(64)]
    return torch.cat(means)[:, :, 0]


def with_statistics(vae: AutoencoderKLQwenImage, latents: Tensor) -> AutoencoderKLQwenImage:
    """Return the autoencoder with mean and deviation of these latents [N, C, H, W] in its configuration."""
    std, mean = torch.std_mean(latents, (0, 2, 3))
    measured = build(*([round(x, 4) for x in of.tolist()] for of in (mean, std)))
    measured.load_state_dict(vae.state_dict())
    return measured.eval()


def _crops(pictures: Tensor, whole: bool) -> Tensor:
    size, count = (64, BATCH // 4) if whole else (CROP, BATCH)
    index = torch.randint(len(pictures), (count,))
    top, left = torch.randint(65 - size, (2,)).tolist()
    return to_float(pictures[index, :, top : top + size, left : left + size])[:, :, None]


def _loss(vae: AutoencoderKLQwenImage, crops: Tensor) -> Tensor:
    """Errors of pixels, of their differences to the neighbours and of their hue, and the divergence.

    Most pictures are yellow or brown: without a loss of its own the hue of the others fades.
    """
    posterior = vae.encode(crops).latent_dist
    off = vae.decoder(vae.post_quant_conv(posterior.sample())) - crops
    edges = off.diff(dim=-1).abs().mean() + off.diff(dim=-2).abs().mean()
    hue = off - off.mean(1, keepdim=True)
    kl = 0.5 * (posterior.mean.pow(2) + posterior.var - 1 - posterior.logvar).mean()
    loss: Tensor = off.abs().mean() + edges + 2 * hue.abs().mean() + 4 * hue.pow(2).mean() + KL * kl
    return loss
