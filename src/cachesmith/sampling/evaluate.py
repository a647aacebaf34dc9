"""Closed-loop error of a policy: a real sampling run against the uncached picture of the same seed."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from cachesmith.policies import Policy
from cachesmith.progress import Advance
from cachesmith.runtime import Stats, apply
from cachesmith.sampling.metrics import METRICS
from cachesmith.sampling.pictures import Pictures
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request
from cachesmith.sampling.scores import measure_metric


class Outcome(NamedTuple):
    """What one closed-loop run gave: per-sample PSNR [N] in dB and its mean, computations, stats."""

    samples: Tensor
    psnr: float
    nfc: float
    stats: Stats
    pictures: Pictures


class Evaluator:
    """Runs candidates on a fixed set of requests; the uncached pictures and paths are sampled once.

    Raises `CachesmithError` where the uncached pictures are not finite.
    """

    def __init__(self, renderer: Renderer, requests: Sequence[Request], advance: Advance | None = None):
        self.renderer, self.requests = renderer, list(requests)
        self.reference = renderer.reference(self.requests, advance)

    @property
    def path(self) -> Tensor:
        """The uncached paths, [N, waypoints, ...], where all samples are of one size."""
        return self.reference.path

    def __call__(self, policy: Policy, count: int | None = None) -> Outcome:
        """Sample the first `count` requests (default: all) under `policy`."""
        chosen = self.requests[:count]
        with apply(self.renderer.pipe, policy) as session:
            pictures = self.renderer(chosen)
        samples = measure_metric(METRICS["psnr"], self.reference[: len(chosen)], pictures)
        return Outcome(samples, float(samples.mean()), session.stats.nfc, session.stats, pictures)
