"""MagCache (arXiv 2506.09045): how much the stack's residual grows from step to step decides what is skipped.

The published ratios come from one prompt; these are means over all requests.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from cachesmith.calibrate.methods.schedule_recorder import RecentOutputs, ScheduleRecorder
from cachesmith.calibrate.methods.threshold import threshold_within
from cachesmith.policies import Policy, Stack, magcache_mask, preset
from cachesmith.runtime import Unit, watch
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request


def fit_magcache(
    renderer: Renderer,
    requests: Sequence[Request],
    *,
    budget: int | None = None,
    threshold: float = 0.24,
    max_skips: int = 5,
    retention: float = 0.1,
    protected: Collection[int] = (),
) -> Policy:
    """Measure the ratios on uncached runs of `requests` and return the schedule they give.

    With `budget`, the smallest threshold that computes at most so many steps replaces `threshold`. The other options
    are those of `magcache_mask`. Raises `PolicyError` when the budget cannot be kept.
    """
    ratios = measure_ratios(renderer, requests)
    if budget is not None:
        threshold = threshold_within(
            lambda t: magcache_mask(ratios, t, max_skips, retention, protected).count("C"), budget
        )
    return preset(
        "magcache",
        ratios=ratios,
        threshold=threshold,
        max_skips=max_skips,
        retention=retention,
        protected=protected,
    )


def measure_ratios(renderer: Renderer, requests: Sequence[Request]) -> tuple[float, ...]:
    """Return one ratio a step: the mean over samples and tokens of |r_t| / |r_(t-1)|, 1 for the first step."""
    ratios = Ratios(renderer.steps)
    with watch(renderer.pipe, Stack(), ScheduleRecorder(ratios.note, taps=1)):
        renderer(requests)
    return ratios.means()


class Ratios:
    """Running means of the ratio, for every step."""

    def __init__(self, steps: int):
        self._sums, self._counts = torch.zeros(2, steps, dtype=torch.float64)

    def note(self, unit: Unit, lane: int, step: int, past: RecentOutputs, output: Tensor) -> None:
        """Add one step of one lane."""
        for _, before in past:
            norms = before.norm(dim=-1)
            ratio = output.norm(dim=-1)[norms > 0] / norms[norms > 0]
            self._sums[step] += ratio.double().sum().cpu()
            self._counts[step] += ratio.numel()

    def means(self) -> tuple[float, ...]:
        """Return the mean ratio of every step; 1 where there is none."""
        return tuple(torch.where(self._counts > 0, self._sums / self._counts.clamp_min(1), 1.0).tolist())
