"""Outputs of whole runs, one request at a time and on some of the tokens: enough to describe channels."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cachesmith.calibrate.record.recorder import lane_name, lane_names
from cachesmith.policies import Units
from cachesmith.runtime import UnitResult, Watcher, watch
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request

RECORDED_TOKENS = 256
"""At most about so many evenly spaced tokens of a sample are kept."""


class ChannelTape(Watcher):
    """Keeps outputs on some of the tokens, on the host.

    `seen`: lane -> (run, branch) -> one tensor [samples, tokens, channels] a step, float32; for runs of blocks the
    residual they add.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, dict[tuple[int, str], list[Tensor]]] = {}

    def observe(self, result: UnitResult) -> None:
        """Keep what is cached of a computed unit."""
        for stream, output in zip(result.unit.streams, result.feature, strict=True):
            runs = self.seen.setdefault(lane_name(result.unit, stream), defaultdict(list))
            runs[self._tick.run, self._tick.branch].append(_some(output).float().cpu().clone())


def runs(renderer: Renderer, requests: Sequence[Request], units: Units) -> Iterator[dict[str, Tensor]]:
    """Sample `requests` uncached and yield, for each, lane -> outputs [steps, samples, tokens, channels].

    Guidance branches count as samples of their own; lanes come in the order of the arrays in a policy file.
    """
    lanes = lane_names(renderer.pipe.transformer, units)
    for request in requests:
        tape = ChannelTape()
        with watch(renderer.pipe, units, tape):
            renderer([request])
        yield {
            lane: torch.cat([torch.stack(steps) for steps in tape.seen[lane].values()], 1) for lane in lanes
        }


def _some(feature: Tensor) -> Tensor:
    tokens = feature.flatten(1, -2)
    return tokens[:, :: -(-tokens.shape[1] // RECORDED_TOKENS)]
