"""How far pictures are from the uncached ones of the same seeds: per sample, then as a mean with an interval.

Values that are not finite count as 0, so that a run that blew up gets a bad score instead of none.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cachesmith.policies import CachesmithError, Quality
from cachesmith.sampling.render import Pictures

CEILING = 100.0
"""PSNR in dB of identical pictures."""
WINDOW = 11
"""Pixels on a side of SSIM's Gaussian window."""
DRAWS = 2000
"""Bootstrap resamples."""

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""LPIPS with the caller's weights: two [N, C, H, W] in [0, 1] to distances [N]."""


@dataclass(frozen=True, eq=False)
class Scores:
    """One value a sample, each of shape [N], float64."""

    psnr: Tensor
    ssim: Tensor
    latent_error: Tensor
    lpips: Tensor | None = None

    def __len__(self) -> int:
        return len(self.psnr)


def compare(reference: Pictures, candidate: Pictures, lpips: Perceptual | None = None) -> Scores:
    """Score every candidate picture against the reference picture of the same place.

    Raises `ValueError` where the two differ in shape, `CachesmithError` where torchmetrics is missing.
    """
    images, others = _paired(reference.images, candidate.images)
    return Scores(
        psnr=psnr(images, others),
        ssim=ssim(images, others),
        latent_error=relative_error(reference.latents, candidate.latents),
        lpips=None if lpips is None else lpips(images.float(), others.float()).reshape(-1).double(),
    )


def psnr(reference: Tensor, candidate: Tensor) -> Tensor:
    """Return the PSNR in dB of every sample, images [N, ...] in [0, 1]; identical ones score `CEILING`."""
    images, others = _paired(reference, candidate)
    error = (images - others).square().flatten(1).mean(1)
    return (-10 * error.log10()).clamp(max=CEILING)


def ssim(reference: Tensor, candidate: Tensor) -> Tensor:
    """Return the structural similarity of every sample, images [N, C, H, W] in [0, 1]."""
    images, others = _paired(reference, candidate)
    if min(images.shape[-2:]) < WINDOW:
        size = " x ".join(str(n) for n in images.shape[-2:])
        raise ValueError(f"SSIM needs pictures of at least {WINDOW} x {WINDOW} pixels, got {size}")
    with needing_calibrate():
        from torchmetrics.functional.image import structural_similarity_index_measure
    value = structural_similarity_index_measure(others, images, reduction="none", data_range=1.0)
    assert isinstance(value, Tensor)
    return value.flatten().double()


def relative_error(reference: Tensor, candidate: Tensor) -> Tensor:
    """Return |a - b| / |a| (Euclidean norms) of every sample, [N, ...]."""
    a, b = _paired(reference, candidate)
    norm = torch.linalg.vector_norm(a.flatten(1), dim=1).clamp(min=torch.finfo(torch.float64).tiny)
    error: Tensor = torch.linalg.vector_norm((a - b).flatten(1), dim=1) / norm
    return error


def bootstrap(values: Tensor, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean of `values` [N]; the same for the same seed."""
    data = values.double().cpu().numpy()
    picks = np.random.default_rng(seed).integers(len(data), size=(DRAWS, len(data)))
    low, high = np.quantile(data[picks].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def summarise(scores: Scores, seed: int) -> Quality:
    """Return the means, and the bootstrap interval of PSNR, as a policy file stores them."""
    low, high = bootstrap(scores.psnr, seed)
    return Quality(
        samples=len(scores),
        psnr=float(scores.psnr.mean()),
        psnr_low=low,
        psnr_high=high,
        ssim=float(scores.ssim.mean()),
        latent_error=float(scores.latent_error.mean()),
        lpips=None if scores.lpips is None else float(scores.lpips.mean()),
    )


@contextmanager
def needing_calibrate() -> Iterator[None]:
    """Say how to install what an import in the block misses."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise CachesmithError(
            f"{error.name} is not installed; install it with: pip install 'cachesmith[calibrate]'"
        ) from None


def _paired(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape:
        raise ValueError(f"pictures of shape {tuple(a.shape)} and {tuple(b.shape)} cannot be compared")
    if len(a) == 0:
        raise ValueError("there are no pictures to compare; sample at least one")
    first, second = (torch.nan_to_num(t.double(), nan=0.0, posinf=0.0, neginf=0.0) for t in (a, b))
    # what is not finite is as wrong as a pixel can be
    return first, torch.where(torch.isfinite(b), second, (first < 0.5).double())
