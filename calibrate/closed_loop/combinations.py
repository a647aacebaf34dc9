"""Which combinations of the latents a segment's derivative is taken of, so that a token's rows can be told apart."""

import torch
from torch import Tensor

_MOST = 16
"""Combinations at most: with fewer latents than this in a token, each is one; else they are mixed with random signs."""

UNSURE = 0.1
"""Rounding may move a share that is nothing or all by less."""


def combinations(end: Tensor, forecast: Tensor) -> list[Tensor]:
    """Combinations of one sample's latents, each [...]: within a token, the sum of their squares is its latents'.

    end: [N, ...] with a graph to `forecast` [rows, tokens, channels]. With random signs that holds in the mean.
    """
    tokens = tokens_of(end, forecast)
    if tokens is not None:
        order = tokens.flatten().argsort(stable=True)
        first = torch.cat([torch.zeros(1, dtype=torch.long), tokens.flatten().bincount().cumsum(0)[:-1]])
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order)) - first[tokens.flatten()[order]]
        count = int(rank.max()) + 1
        if count <= _MOST:
            return [(rank == i).float().view(tokens.shape).to(end.device) for i in range(count)]
    generator = torch.Generator().manual_seed(0)
    signs = 2 * torch.randint(2, (_MOST, *end.shape[1:]), generator=generator) - 1
    return list(signs.float().to(end.device) / _MOST**0.5)


def tokens_of(end: Tensor, forecast: Tensor) -> Tensor | None:
    """The token of the forecast that each latent of a sample depends on, [...]; None where it is not a single one.

    For each bit of a token's number, the derivative along one direction in the tokens that have the bit is all of that
    along it in all tokens, or nothing of it.
    """
    cotangent = torch.zeros_like(end, requires_grad=True)
    (adjoint,) = torch.autograd.grad(end, forecast, cotangent, create_graph=True)
    direction = torch.randn(adjoint.shape[-1], generator=torch.Generator().manual_seed(0)).to(adjoint)
    numbers = torch.arange(adjoint.shape[1], device=adjoint.device)

    def moved(tokens: Tensor) -> Tensor:
        along = (tokens.to(adjoint)[:, None] * direction).expand_as(adjoint)
        (found,) = torch.autograd.grad(adjoint, cotangent, along, retain_graph=True)
        return found[0].detach()

    try:
        every = moved(torch.ones_like(numbers))
    except RuntimeError as error:
        if "not implemented" not in str(error):
            raise
        return None  # fused attention after the blocks has no second derivative, and mixes tokens
    token = torch.zeros_like(every, dtype=torch.long)
    for bit in range(max(1, (len(numbers) - 1).bit_length())):
        share = moved((numbers >> bit) & 1) / every
        if not bool((torch.minimum(share.abs(), (share - 1).abs()) < UNSURE).all()):
            return None
        token |= share.round().long() << bit
    return token.cpu()
