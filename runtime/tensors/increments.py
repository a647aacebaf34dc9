"""What is done to a forecast's step away from the newest output: projected, filtered. Wide in, wide out.

B: samples, ...: tokens, D: channels.
"""

from functools import lru_cache
from math import ceil, sqrt

import torch
from torch import Tensor


def project(increment: Tensor, basis: Tensor) -> Tensor:
    """Return increment V V^T with V = `basis` [D, k], orthonormal (SVD-Cache: only the principal part moves)."""
    basis = basis.to(increment.dtype)
    return (increment @ basis) @ basis.T


def high_pass(increment: Tensor, cutoff: float) -> Tensor:
    """Remove the lowest of all frequencies over the tokens, rounded up: a share `cutoff` of them.

    increment: [B, ..., T, D]. A real Fourier transform along the tokens in their order (FreqCa, FFT variant).
    """
    spectrum = torch.fft.rfft(increment, dim=-2)
    spectrum[..., : ceil(cutoff * spectrum.shape[-2]), :] = 0
    # the transform leaves strides of its own, which would make every later sum several times slower
    passed: Tensor = torch.fft.irfft(spectrum, n=increment.shape[-2], dim=-2)
    return passed.contiguous()


def high_pass_grid(increment: Tensor, cutoff: float, grid: tuple[int, int]) -> Tensor:
    """As `high_pass` for tokens that are the rows of a picture: two-dimensional cosine transform (FreqCa, DCT variant).

    increment: [B, ..., rows x columns, D]. Low are the frequencies (u, v) with sqrt(u^2 + v^2) at most `cutoff` of the
    largest; with cutoff 0 none is.
    """
    down, across = (cosines(side, increment.dtype, increment.device) for side in grid)
    u, v = (torch.arange(side, dtype=increment.dtype, device=increment.device) for side in grid)
    radius = torch.hypot(u[:, None], v)
    high = (radius > cutoff * radius.max()) | (cutoff == 0)
    pixels = increment.reshape(*increment.shape[:-2], *grid, increment.shape[-1])
    spectrum = torch.einsum("ui,vj,...ijd->...uvd", down, across, pixels) * high[..., None]
    return torch.einsum("ui,vj,...uvd->...ijd", down, across, spectrum).flatten(-3, -2)


@lru_cache(maxsize=64)
def cosines(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal cosine transform (DCT-II) of `size` values: [frequency, value]."""
    index = torch.arange(size, device=device)
    # whole turns are taken off as integers: a cosine of many turns would be inexact in float32
    angle = (index[:, None] * (2 * index + 1) % (4 * size)).to(dtype) * (torch.pi / (2 * size))
    table: Tensor = angle.cos() * sqrt(2 / size)
    table[0] /= sqrt(2)
    return table
