"""Choosing, cutting out and putting back tokens: pure tensor functions, per sample, without a word to the host.

B: samples, N: tokens, D: channels, K: clusters, n: chosen tokens.
"""

import torch
from torch import Tensor

from cachesmith.runtime.tensors.norms import EPSILON, accumulate


def take(x: Tensor, index: Tensor) -> Tensor:
    """Cut the tokens `index` [B, n] out of x [B, N, D]: [B, n, D]."""
    return x.gather(1, _wide(index, x))


def put(x: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Return x [B, N, D] with `values` [B, n, D] at the tokens `index` [B, n]."""
    return x.scatter(1, _wide(index, x), values.to(x.dtype))


def token_score(values: Tensor) -> Tensor:
    """Return z / |z| [B, N] with z the norms of the tokens [B, N, D] (ToCa's code divides every score so)."""
    norm: Tensor = torch.linalg.vector_norm(values, dim=-1, dtype=accumulate(values.dtype))
    total: Tensor = torch.linalg.vector_norm(norm, dim=-1, keepdim=True)
    return norm / total.clamp_min(EPSILON)


def random_score(tokens: int, seed: int, device: torch.device) -> Tensor:
    """Return uniform numbers [1, N]: the same for all samples, so that none depends on its place in the batch."""
    return torch.rand(1, tokens, generator=torch.Generator(device).manual_seed(seed), device=device)


def best(score: Tensor, count: int) -> Tensor:
    """Return the indices [B, n] of the highest scores [B, N], in the tokens' order."""
    return score.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values


def best_of_each(score: Tensor, labels: Tensor, clusters: int) -> Tensor:
    """Return the index [B, K] of the highest score [B, N] in every cluster; an empty one repeats token 0."""
    own = labels.unsqueeze(1) == torch.arange(clusters, device=labels.device).view(1, -1, 1)
    return score.unsqueeze(1).masked_fill(~own, -torch.inf).argmax(-1)


def cluster_tokens(x: Tensor, clusters: int, iterations: int) -> Tensor:
    """Return labels [B, N] below `clusters`: Lloyd's k-means of x [B, N, D], started at evenly spaced tokens."""
    x = x.to(accumulate(x.dtype))
    start = torch.arange(clusters, device=x.device) * x.shape[1] // clusters
    centres = x[:, start]
    labels = _nearest(x, centres)
    for _ in range(iterations):
        member = torch.nn.functional.one_hot(labels, clusters).to(x.dtype)
        sizes = member.sum(1).unsqueeze(-1)
        centres = torch.where(sizes > 0, member.mT @ x / sizes.clamp_min(1), centres)
        labels = _nearest(x, centres)
    return labels


def spread(x: Tensor, values: Tensor, labels: Tensor, blend: float) -> Tensor:
    """Draw every token of x [B, N, D] towards its cluster's value [B, K, D] (ClusCa: new = p mean + (1 - p) old)."""
    return torch.lerp(x, take(values.to(x.dtype), labels), blend)


def _nearest(x: Tensor, centres: Tensor) -> Tensor:
    distance = torch.baddbmm(centres.square().sum(-1).unsqueeze(1), x, centres.mT, alpha=-2)
    return distance.argmin(-1)


def _wide(index: Tensor, x: Tensor) -> Tensor:
    return index.unsqueeze(-1).expand(-1, -1, x.shape[-1])
