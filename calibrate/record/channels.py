"""Clusters of channels by how they move over a run (HyCa, arXiv 2510.04188), from one small statistic per channel."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachesmith.calibrate.record.channel_recorder import runs
from cachesmith.policies import PolicyError, Units
from cachesmith.sampling.metrics import needing_calibrate
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request

DESCRIPTORS = ("first difference", "second difference", "energy", "jerk ratio", "curvature ratio", "flatness")
CLUSTERS = range(2, 7)
"""Numbers of clusters among which the silhouette chooses."""

FEWEST = 5
"""Steps a run must have for its channels to be described."""

_CHUNK = 256
"""Channels that are widened to float64 at a time."""

_TINY = 1e-30

Labels = NDArray[np.int32]


def temporal_gram(outputs: Tensor) -> Tensor:
    """Mean over samples and tokens of F_s F_t, per channel: [steps, samples, ..., C] -> [C, steps, steps], float64.

    Descriptors, forecast errors and fitted weights are all functions of it, and it adds up over samples.
    """
    parts = [part.double().permute(2, 0, 1) for part in torch.split(outputs.flatten(1, -2), _CHUNK, dim=-1)]
    return torch.cat([part @ part.transpose(1, 2) / part.shape[2] for part in parts])


def record_grams(renderer: Renderer, requests: Sequence[Request], units: Units) -> dict[str, Tensor]:
    """Sample `requests` uncached, one at a time, and return lane -> [requests, channels, steps, steps]."""
    each = [
        {lane: temporal_gram(outputs) for lane, outputs in run.items()}
        for run in runs(renderer, requests, units)
    ]
    return {lane: torch.stack([grams[lane] for grams in each]) for lane in each[0]}


def joined_grams(grams: Mapping[str, Tensor]) -> Tensor:
    """All lanes' Gram matrices, mean over requests: [lanes, channels, steps, steps].

    Raises `PolicyError` where lanes have different numbers of channels.
    """
    widths = {len(gram[0]) for gram in grams.values()}
    if len(widths) > 1:
        raise PolicyError(
            f"lanes have {sorted(widths)} channels, but clusters need one number; use units `stack`"
        )
    return torch.stack([gram.mean(0) for gram in grams.values()])


def descriptors(gram: Tensor) -> NDArray[np.float64]:
    """HyCa's channel descriptors from [C, steps, steps]: [C, 6] in the order of `DESCRIPTORS`, standardised.

    Differences and energy are logarithms of mean squares over steps and tokens; jerk ratio is |D3 F| / |D2 F|,
    curvature ratio |D2 F| / |D1 F|; flatness is that of the mean power spectrum over steps without its mean (the
    paper names the descriptors and prints no formulas). Raises `PolicyError` below `FEWEST` steps.
    """
    steps = gram.shape[-1]
    if steps < FEWEST:
        raise PolicyError(
            f"channels are described by at least {FEWEST} steps, got {steps}; record longer runs"
        )
    identity = torch.eye(steps, dtype=torch.float64)
    energy, first, second, third = (_power(gram, torch.diff(identity, n=n, dim=0)) for n in range(4))
    columns = (
        first.log(), second.log(), energy.log(), (third / second).sqrt(), (second / first).sqrt(), flatness(gram),
    )  # fmt: skip
    table = torch.stack(columns, dim=1)
    spread = table.std(0, correction=0)
    standard = (table - table.mean(0)) / torch.where(spread > 1e-9, spread, 1.0)
    values: NDArray[np.float64] = standard.numpy()
    return values


def flatness(gram: Tensor) -> Tensor:
    """Geometric over arithmetic mean of the power at frequencies above 0, [C, steps, steps] -> [C] in [0, 1]."""
    steps = gram.shape[-1]
    waves = torch.fft.rfft(torch.eye(steps, dtype=torch.float64), dim=1).T[1:]
    power = torch.einsum("fs,cst,ft->cf", waves, gram.to(waves.dtype), waves.conj()).real.clamp_min(_TINY)
    return power.log().mean(1).exp() / power.mean(1)


def _power(gram: Tensor, operator: Tensor) -> Tensor:
    return torch.einsum("ks,cst,kt->ck", operator, gram, operator).mean(1).clamp_min(_TINY)


def cluster(gram: Tensor, count: int, seed: int = 0) -> Labels:
    """k-means on the descriptors of [C, steps, steps]: a label per channel, 0 the smoothest cluster."""
    with needing_calibrate():
        from sklearn.cluster import KMeans
    table = descriptors(gram)
    count = min(count, len(np.unique(table.round(9), axis=0)))
    labels = KMeans(count, n_init=10, random_state=seed).fit_predict(table)
    curvature = table[:, DESCRIPTORS.index("curvature ratio")]
    order = np.argsort([curvature[labels == label].mean() for label in range(count)])
    ranked: Labels = np.argsort(order)[labels].astype(np.int32)
    return ranked


def silhouettes(grams: Tensor, seed: int = 0) -> dict[int, float]:
    """Mean silhouette over lanes for every number of clusters that is tried; grams [lanes, C, steps, steps]."""
    return {
        count: float(np.mean([silhouette(gram, cluster(gram, count, seed)) for gram in grams]))
        for count in CLUSTERS
        if count < grams.shape[1]
    }


def cluster_all(
    grams: Tensor, count: int | None, seed: int = 0, *, shared: bool = False
) -> tuple[Labels, dict[int, float]]:
    """Labels [lanes, C] of every lane, and the silhouettes that chose their number unless `count` is given.

    shared: cluster the channels once, by their mean over the lanes.
    """
    scores = silhouettes(grams, seed)
    count = count or max(scores, key=scores.__getitem__)
    each = grams.mean(0, keepdim=True) if shared else grams
    labels = [cluster(gram, count, seed) for gram in each]
    return np.stack(labels * len(grams) if shared else labels), scores


def silhouette(gram: Tensor, labels: Labels) -> float:
    """How far apart the clusters lie, -1 to 1; -1 where all channels are in one."""
    with needing_calibrate():
        from sklearn.metrics import silhouette_score
    if not 1 < len(np.unique(labels)) < len(labels):
        return -1.0
    return float(silhouette_score(descriptors(gram), labels))


def agreement(labelings: Sequence[Labels]) -> float:
    """Mean adjusted Rand index over all pairs: 1 for equal clusterings, about 0 for unrelated ones."""
    with needing_calibrate():
        from sklearn.metrics import adjusted_rand_score
    return float(np.mean([adjusted_rand_score(a, b) for a, b in combinations(labelings, 2)]))
