"""Closed-loop error of a policy: a real sampling run against the uncached picture of the same seed."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from cachesmith.policies import Policy
from cachesmith.runtime import Stats, apply
from cachesmith.sampling.metrics import psnr
from cachesmith.sampling.render import Pictures, Renderer
from cachesmith.sampling.requests import Request


class Outcome(NamedTuple):
    """What one closed-loop run gave: per-sample PSNR [N] in dB and its mean, computations, stats."""

    samples: Tensor
    psnr: float
    nfc: float
    stats: Stats
    pictures: Pictures


class Evaluator:
    """Runs candidates on a fixed set of requests; the uncached pictures and paths are sampled once."""

    def __init__(
        self, renderer: Renderer, requests: Sequence[Request], advance: Callable[[int], None] | None = None
    ):
        self.renderer, self.requests = renderer, list(requests)
        self.reference, self.path = renderer.walk(self.requests, advance)

    def __call__(self, policy: Policy, count: int | None = None) -> Outcome:
        """Sample the first `count` requests (default: all) under `policy`."""
        chosen = self.requests[:count]
        with apply(self.renderer.pipe, policy) as session:
            pictures = self.renderer(chosen)
        samples = psnr(self.reference.images[: len(chosen)], pictures.images)
        return Outcome(samples, float(samples.mean()), session.stats.nfc, session.stats, pictures)
