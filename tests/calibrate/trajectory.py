"""Whole trajectories of a few requests, in memory: what fits are compared with."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from cachesmith.calibrate.record.recorder import lane_name
from cachesmith.policies import Units
from cachesmith.runtime import UnitResult, Watcher, watch
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request


class Tape(Watcher):
    """Keeps the outputs; for runs of blocks, the residual they add."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, dict[tuple[int, str], list[Tensor]]] = {}

    def observe(self, result: UnitResult) -> None:
        for stream, feature in zip(result.unit.streams, result.feature, strict=True):
            runs = self.seen.setdefault(lane_name(result.unit, stream), defaultdict(list))
            runs[self._tick.run, self._tick.branch].append(feature.float().cpu().clone())


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
