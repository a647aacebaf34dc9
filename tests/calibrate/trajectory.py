"""Whole trajectories of a few requests, in memory: what fits are compared with."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from cachesmith.calibrate.record.recorder import Watcher, lane_name, watch
from cachesmith.policies import Units
from cachesmith.runtime import Unit
from cachesmith.runtime.forecast.history import Feature
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request


class Tape(Watcher):
    """Keeps the outputs; for runs of blocks, the residual they add."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, dict[tuple[int, str], list[Tensor]]] = {}

    def observe(self, unit: Unit, inputs: Feature, outputs: Feature) -> None:
        for stream, entered, left in zip(unit.streams, inputs, outputs, strict=True):
            # a clone: samplers and blocks may write into what they were given
            made = (left - entered if unit.residual else left.clone()).float().cpu()
            runs = self.seen.setdefault(lane_name(unit, stream), defaultdict(list))
            runs[self._tick.run, self._tick.branch].append(made)


def trajectories(renderer: Renderer, requests: Sequence[Request], units: Units) -> dict[str, Tensor]:
    """Sample `requests` uncached and return the outputs of every lane of `units`, by lane name.

    They are [steps, samples, ..., channels], float32. Guidance branches count as samples of their own.
    """
    tape = Tape()
    with watch(renderer.pipe, units, tape):
        renderer(requests)
    return {
        lane: torch.cat([torch.stack(run) for run in runs.values()], 1) for lane, runs in tape.seen.items()
    }
