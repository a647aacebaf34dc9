"""Whole trajectories of a few requests, in memory: what the published methods are fitted on."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cachesmith.calibrate.prompts import Request
from cachesmith.calibrate.record import Watcher, lane_name, watch
from cachesmith.calibrate.render import Renderer
from cachesmith.policies import PolicyError, Units
from cachesmith.runtime import Unit
from cachesmith.runtime.history import Feature

LIMIT = 4 * 2**30
"""Bytes of host memory a tape may fill."""


@dataclass(frozen=True)
class Trajectory:
    """One lane of an uncached run: inputs and outputs [steps, samples, ..., channels], float32, on the host.

    For runs of blocks the output is the residual they add. Guidance branches count as samples of their own.
    """

    inputs: Tensor
    outputs: Tensor


class Tape(Watcher):
    """Keeps everything."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, dict[tuple[int, str], list[tuple[Tensor, Tensor]]]] = {}
        self._bytes = 0

    def observe(self, unit: Unit, inputs: Feature, outputs: Feature) -> None:
        """Keep a computed unit. Raises `PolicyError` when memory would run out."""
        for stream, entered, left in zip(unit.streams, inputs, outputs, strict=True):
            # clones: samplers and blocks may write into what they were given
            made = (left - entered if unit.residual else left.clone()).float().cpu()
            moved = entered.clone().float().cpu()
            self._bytes += made.nbytes + moved.nbytes
            if self._bytes > LIMIT:
                raise PolicyError(
                    f"recording needs more than {LIMIT:,} bytes; fit on fewer prompts or coarser units"
                )
            runs = self.seen.setdefault(lane_name(unit, stream), defaultdict(list))
            runs[self._tick.run, self._tick.branch].append((moved, made))


def trajectories(renderer: Renderer, requests: Sequence[Request], units: Units) -> dict[str, Trajectory]:
    """Sample `requests` uncached and return what every lane of `units` did, keyed by lane name."""
    tape = Tape()
    with watch(renderer.pipe, units, tape):
        renderer(requests)
    return {lane: _joined(list(runs.values())) for lane, runs in tape.seen.items()}


def _joined(runs: list[list[tuple[Tensor, Tensor]]]) -> Trajectory:
    parts = [(torch.stack([i for i, _ in run]), torch.stack([o for _, o in run])) for run in runs]
    return Trajectory(torch.cat([i for i, _ in parts], 1), torch.cat([o for _, o in parts], 1))
