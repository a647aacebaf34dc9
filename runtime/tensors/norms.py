"""Sizes and distances of features, one number a sample [B]. Sums are wide: float32, or float64 for float64."""

import torch
from torch import Tensor

EPSILON = 1e-12
RESOLUTION = 1e-6
"""A relative change below it is rounding, and no ratio is formed with it."""


def accumulate(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are taken in: float64 stays, everything else is float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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
