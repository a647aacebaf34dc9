"""All arithmetic of a forecast: base + sum_j w_j F_j, and RFE's step of a given length.

The plain versions here are the reference. On CUDA `triton_kernels` computes the same in one pass over memory: one
launch for a sum, three for a step. Sums are wide: float32, or float64 for float64. B: samples, ...: tokens,
D: channels, F0: the newest output.
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from cachesmith.runtime.tensors.norms import EPSILON, accumulate, sample_norm

Weight = float | Tensor
"""One number, or one for every channel: [D], float32."""

Terms = Sequence[tuple[Weight, Tensor]]
"""Weights and what they multiply: [B, ..., D], all of one shape and dtype."""


def weighted_sum(
    terms: Terms,
    base: Tensor | None = None,
    offset: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return base + sum_j w_j F_j + offset in `dtype`, by default the terms'. `offset`: [D].

    A single term of weight 1 is handed back as it is: no tensor is made.
    """
    weight, first = terms[0]
    dtype = dtype or first.dtype
    if base is None and offset is None and len(terms) == 1 and _is_one(weight) and dtype == first.dtype:
        return first
    if fusable(first):
        from cachesmith.runtime.tensors import triton_kernels

        return triton_kernels.fused_weighted_sum(terms, base, offset, dtype)
    total = _plain_sum(terms, base)
    return (total if offset is None else total.add_(offset)).to(dtype)


def relational_step(
    terms: Terms,
    newest: Tensor,
    moved: tuple[Tensor, Tensor],
    scale: Tensor | float,
    base: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """Return base + F0 + (s |I - I0| / |d|) d + offset with d = sum_j w_j F_j - F0, in F0's dtype.

    RFE (RFC, arXiv 2602.19506): Taylor's direction, and a length that follows from the input. `moved`: I and I0;
    `scale`: s, [B] or one number. An input at rest, as a text stream's, tells no length: d is taken as it is.
    """
    if fusable(newest):
        from cachesmith.runtime.tensors import triton_kernels

        return triton_kernels.fused_relational_step(terms, newest, moved, scale, base, offset)
    step = step_away(terms, newest)
    total = rescale(step, moved, scale).add_(newest)
    for part in (base, offset):
        if part is not None:
            total.add_(part)
    return total.to(newest.dtype)


def rescale(step: Tensor, moved: tuple[Tensor, Tensor], scale: Tensor | float) -> Tensor:
    """Give every sample's wide step the L2 length s |I - I0|, in place; zero stays zero (RFC: g(x) = x / |x|)."""
    size = sample_norm(moved[0] - moved[1])
    factor = size * scale / sample_norm(step).clamp_min(EPSILON)
    factor = torch.where(size > 0, factor, 1.0)
    return step.mul_(factor.view(-1, *[1] * (step.ndim - 1)))


def step_away(terms: Terms, newest: Tensor) -> Tensor:
    """Return sum_j w_j F_j - F0, wide: how far a forecast moves away from the newest output."""
    (weight, first), *rest = terms
    folded = [(weight - 1.0, first), *rest] if first is newest else [*terms, (-1.0, newest)]
    return weighted_sum(folded, dtype=accumulate(newest.dtype))


def fusable(tensor: Tensor) -> bool:
    """Whether the fused kernels compute where `tensor` is. Gradients go through the plain version."""
    eligible = tensor.is_cuda and tensor.dtype != torch.float64 and not torch.is_grad_enabled()
    return eligible and _has_triton()


@cache
def _has_triton() -> bool:
    """It comes with torch for CUDA on Linux, and not everywhere."""
    return find_spec("triton") is not None


def _plain_sum(terms: Terms, base: Tensor | None) -> Tensor:
    """The sum in a new wide tensor; one operation a term."""
    wide = accumulate(terms[0][1].dtype)
    (weight, first), *rest = terms
    total = _first_term(weight, first.to(wide), None if base is None else base.to(wide))
    for weight, tensor in rest:
        if isinstance(weight, Tensor):
            total.addcmul_(weight.to(wide), tensor.to(wide))
        else:
            total.add_(tensor, alpha=weight)
    return total


def _first_term(weight: Weight, first: Tensor, base: Tensor | None) -> Tensor:
    if base is None:
        return first * (weight.to(first.dtype) if isinstance(weight, Tensor) else weight)
    if isinstance(weight, Tensor):
        return torch.addcmul(base, weight.to(first.dtype), first)
    return torch.add(base, first, alpha=weight)


def _is_one(weight: Weight) -> bool:
    return not isinstance(weight, Tensor) and weight == 1.0
