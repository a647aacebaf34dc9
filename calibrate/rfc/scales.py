"""RFE's scales from a few uncached runs: two norms a lane and step, nothing else is kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cachesmith.calibrate.fit.scales import ScaleFit, fit_correction, fit_scale
from cachesmith.calibrate.fleet.groups import Group
from cachesmith.calibrate.record.recorder import Recorder, lane_names
from cachesmith.policies import Modules, UnitFit
from cachesmith.policies.base import Arrays
from cachesmith.runtime import watch
from cachesmith.sampling.render import Renderer

BINS = 10
"""Equal parts of a run, each with a scale of its own."""


@dataclass(frozen=True)
class Scales:
    """Arrays `scales/module` and `corrections/module` [lanes, BINS], and how well one number describes each lane."""

    arrays: Arrays
    fits: dict[str, ScaleFit]

    @property
    def records(self) -> tuple[UnitFit, ...]:
        """As a policy file keeps them."""
        return tuple(
            UnitFit(lane=name, scale=float(fit.scales.mean()), spread=fit.spread, r2=fit.r2)
            for name, fit in self.fits.items()
        )


def record_scales(renderer: Renderer, groups: Sequence[Group]) -> Scales:
    """Sample uncached once more, and look at every module."""
    recorder = Recorder()
    with watch(renderer.pipe, Modules(), recorder):
        for group in groups:
            renderer(group.requests)
    lanes = lane_names(renderer.pipe.transformer, Modules())
    movements = {lane: recorder.movements[lane].on_host() for lane in lanes}
    fits = {lane: fit_scale(moved, renderer.steps, BINS) for lane, moved in movements.items()}
    corrections = [fit_correction(moved, renderer.steps, BINS) for moved in movements.values()]
    arrays = {
        "scales/module": torch.stack([fit.scales for fit in fits.values()]).float().numpy(),
        "corrections/module": torch.stack(corrections).float().numpy(),
    }
    return Scales(arrays, fits)
