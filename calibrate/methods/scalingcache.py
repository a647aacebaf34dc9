"""ScalingCache (ICLR 2026): a line through the last two computed outputs, its slope scaled by a calibrated factor.

F = F0 + a k (F0 - F1) with k the distance to F0 in units of the last gap, and a by least squares over all samples for
every step and stream: 0 is reuse, 1 the plain line. The published schedule, which decides while sampling, is not part
of it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cachesmith.calibrate.methods.schedule_recorder import RecentOutputs, ScheduleRecorder
from cachesmith.calibrate.record.recorder import lane_names
from cachesmith.policies import (
    Fitted,
    Fixed,
    Forecaster,
    Policy,
    PolicyError,
    Profile,
    Segments,
    Units,
    unbound,
)
from cachesmith.policies.schedule import interval_mask
from cachesmith.runtime import Unit, watch
from cachesmith.runtime.models.units import block_lists
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request

WEIGHTS = "scalingcache/weights"


def fit_scalingcache(
    renderer: Renderer,
    requests: Sequence[Request],
    *,
    budget: int | None = None,
    interval: int = 5,
    warmup: int = 2,
    mask: str | None = None,
    units: Units | None = None,
) -> Policy:
    """Fit the factors on uncached runs of `requests`.

    The schedule is `mask`, or `budget` steps spread evenly, or every `interval`-th after `warmup`. units: every block
    by itself, as published, unless given. Raises `PolicyError` for a mask of another length than the run.
    """
    transformer = renderer.pipe.transformer
    units = units or Segments(starts=tuple(range(len(block_lists(transformer)))))
    letters = mask or interval_mask(renderer.steps, interval, budget, warmup)
    if len(letters) != renderer.steps:
        raise PolicyError(f"the mask has {len(letters)} letters for {renderer.steps} steps; give one a step")
    factors = Factors(letters, len(lane_names(transformer, units)))
    with watch(renderer.pipe, units, ScheduleRecorder(factors.note, taps=2, mask=letters)):
        renderer(requests)
    profile = Profile(
        units=units, gate=Fixed(mask=letters), forecaster=Forecaster(rows=Fitted(weights=WEIGHTS))
    )
    return unbound(profile, {WEIGHTS: factors.weights().float().numpy().astype(np.float32)})


class Factors:
    """Running sums of the least squares for every lane and step."""

    def __init__(self, mask: str, lanes: int):
        self._mask = mask
        self._sums = torch.zeros(2, lanes, len(mask), dtype=torch.float64)
        self._ahead = torch.zeros(len(mask), dtype=torch.float64)

    def note(self, unit: Unit, lane: int, step: int, past: RecentOutputs, output: Tensor) -> None:
        """Add one step of one lane, if it is forecast from two computed ones."""
        if self._mask[step] == "C" or len(past) < 2:
            return
        (newest, new), (older, old) = past
        self._ahead[step] = (step - newest) / (newest - older)
        line, truth = (new - old).double(), (output - new).double()
        self._sums[0, lane, step] += (truth * line).sum().cpu()
        self._sums[1, lane, step] += (line * line).sum().cpu() * self._ahead[step]

    def alphas(self) -> Tensor:
        """Return the factors, [lanes, steps]; 0 where there is no line."""
        return torch.where(self._sums[1] > 0, self._sums[0] / self._sums[1].clamp_min(1e-30), 0.0)

    def weights(self) -> Tensor:
        """Return the weights of F0 and F1, [lanes, steps, 2]: 1 + a k and -a k."""
        scaled = self.alphas() * self._ahead
        return torch.stack([1 + scaled, -scaled], dim=2)
