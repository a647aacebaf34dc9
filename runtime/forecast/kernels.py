"""Outputs from weights: pure tensor functions, per sample. Sums and norms are wide: float32, or float64 for float64.

B: samples, ...: tokens, D: channels, K: past outputs (newest first).
"""

from collections.abc import Sequence
from math import ceil, sqrt

import torch
from torch import Tensor

EPSILON = 1e-12
RESOLUTION = 1e-6
"""A relative change below it is rounding, and no ratio is formed with it."""


def accumulate(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are taken in: float64 stays, everything else is float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def weighted_sum(weights: Sequence[float], outputs: Sequence[Tensor], base: Tensor | None = None) -> Tensor:
    """Return base + sum_j weights[j] outputs[j], wide; of unequal lists the shorter one counts."""
    wide = accumulate(outputs[0].dtype)
    first = outputs[0].to(wide)
    total = first * weights[0] if base is None else torch.add(base, first, alpha=weights[0])
    for weight, output in zip(weights[1:], outputs[1:], strict=False):
        total.add_(output, alpha=weight)
    return total


def clustered_sum(weights: Sequence[Tensor], outputs: Sequence[Tensor], base: Tensor | None = None) -> Tensor:
    """As `weighted_sum` with one weight per channel: `weights` holds K rows of [D] (HyCa, eq. 7)."""
    wide = accumulate(outputs[0].dtype)
    row, first = weights[0].to(wide), outputs[0].to(wide)
    total = first * row if base is None else torch.addcmul(base.to(wide), row, first)
    for row, output in zip(weights[1:], outputs[1:], strict=True):
        total.addcmul_(row.to(wide), output.to(wide))
    return total


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
    down, across = (cosines(side, increment) for side in grid)
    u, v = (torch.arange(side, dtype=increment.dtype, device=increment.device) for side in grid)
    radius = torch.hypot(u[:, None], v)
    high = (radius > cutoff * radius.max()) | (cutoff == 0)
    pixels = increment.reshape(*increment.shape[:-2], *grid, increment.shape[-1])
    spectrum = torch.einsum("ui,vj,...ijd->...uvd", down, across, pixels) * high[..., None]
    return torch.einsum("ui,vj,...uvd->...ijd", down, across, spectrum).flatten(-3, -2)


def cosines(size: int, like: Tensor) -> Tensor:
    """The orthonormal cosine transform (DCT-II) of `size` values: [frequency, value], dtype and device of `like`."""
    index = torch.arange(size, device=like.device)
    # whole turns are taken off as integers: a cosine of many turns would be inexact in float32
    angle = (index[:, None] * (2 * index + 1) % (4 * size)).to(like.dtype) * (torch.pi / (2 * size))
    table: Tensor = angle.cos() * sqrt(2 / size)
    table[0] /= sqrt(2)
    return table


def sample_norm(x: Tensor) -> Tensor:
    """L2 norm of every sample: [B, ...] -> [B]."""
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=accumulate(x.dtype))
    return norm


def observed_scale(output: Tensor, output_before: Tensor, moved: Tensor, moved_before: Tensor) -> Tensor:
    """RFE's s = |F0 - F1| / |I0 - I1| per sample [B] (RFC, arXiv 2602.19506, eq. for s_N)."""
    floor = (RESOLUTION * sample_norm(moved)).clamp_min(EPSILON)
    change = sample_norm(moved - moved_before)
    ratio: Tensor = sample_norm(output - output_before) / torch.maximum(change, floor)
    return ratio


def rescale(increment: Tensor, length: Tensor) -> Tensor:
    """Give every sample's wide increment the L2 length `length` [B]; zero stays zero (RFC: g(x) = x / |x|)."""
    factor = length / sample_norm(increment).clamp_min(EPSILON)
    return increment * factor.view(-1, *[1] * (increment.ndim - 1))


def relative_l1(value: Tensor, forecast: Tensor) -> Tensor:
    """|value - forecast|_1 / |value|_1 per sample [B] (RFC: e_I of the relational schedule)."""
    size = value.abs().flatten(1).sum(1, dtype=accumulate(value.dtype))
    return moved_l1(value, forecast) / size.clamp_min(EPSILON)


def relative_l2(value: Tensor, forecast: Tensor) -> Tensor:
    """|value - forecast|_2 / |value|_2 per sample [B]."""
    wide = value.to(accumulate(value.dtype))
    return sample_norm(wide - forecast) / sample_norm(wide).clamp_min(EPSILON)


def moved_l1(value: Tensor, before: Tensor) -> Tensor:
    """|value - before|_1 per sample [B]."""
    total: Tensor = (value.to(accumulate(value.dtype)) - before).abs().flatten(1).sum(1)
    return total
