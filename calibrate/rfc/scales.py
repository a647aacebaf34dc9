"""RFE's scales from a few uncached runs: two norms a lane and step, nothing else is kept."""

from collections.abc import Sequence

import torch

from cachesmith.calibrate.fit.scales import fit_correction, fit_scale
from cachesmith.calibrate.fleet.groups import Group
from cachesmith.calibrate.record.recorder import Recorder, lane_names
from cachesmith.policies import Modules
from cachesmith.policies.base import Arrays
from cachesmith.runtime import watch
from cachesmith.sampling.render import Renderer

BINS = 10
"""Equal parts of a run, each with a scale of its own."""


def record_scales(renderer: Renderer, groups: Sequence[Group]) -> Arrays:
    """Sample uncached once more; return `scales/module` and `corrections/module`, [lanes, BINS] each."""
    recorder = Recorder()
    with watch(renderer.pipe, Modules(), recorder):
        for group in groups:
            renderer(group.requests)
    lanes = lane_names(renderer.pipe.transformer, Modules())
    movements = [recorder.movements[lane].on_host() for lane in lanes]
    fits = [fit_scale(moved, renderer.steps, BINS) for moved in movements]
    corrections = [fit_correction(moved, renderer.steps, BINS) for moved in movements]
    return {
        "scales/module": torch.stack([fit.scales for fit in fits]).float().numpy(),
        "corrections/module": torch.stack(corrections).float().numpy(),
    }
