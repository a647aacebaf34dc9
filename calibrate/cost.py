"""What a policy costs, modelled from measured unit times, so that a search needs no quiet machine."""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from cachesmith.calibrate.prompts import Request
from cachesmith.calibrate.record import watch
from cachesmith.calibrate.render import Renderer
from cachesmith.policies import Units
from cachesmith.runtime import Stats, Tick, Unit
from cachesmith.runtime.attach import Feature


class Stopwatch:
    """A runner that computes every unit and times it."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._began = 0.0

    def begin(self, tick: Tick) -> None:
        """A transformer call."""

    def forecast(self, unit: Unit, inputs: Feature) -> Feature | None:
        """Start the clock and have the unit computed."""
        self._began = _now(inputs)
        return None

    def observe(self, unit: Unit, inputs: Feature, outputs: Feature) -> None:
        """Stop the clock."""
        self.seconds[unit.name].append(_now(outputs) - self._began)


@dataclass(frozen=True)
class CostModel:
    """Median seconds of one computation of every unit (all granularities), and of all of them together."""

    seconds: dict[str, float]
    step: float

    def cost(self, stats: Stats, runs: int) -> float:
        """Computed units times their measured time, in full transformer steps per run."""
        return sum(count * self.seconds[unit] for unit, count in stats.computed.items()) / (self.step * runs)


def measure_costs(
    renderer: Renderer, requests: Sequence[Request], granularities: Sequence[Units]
) -> CostModel:
    """Time every unit on a short uncached run per granularity."""
    seconds: dict[str, float] = {}
    step = 0.0
    for units in granularities:
        stopwatch = Stopwatch()
        with watch(renderer.pipe, units, stopwatch):
            Renderer(renderer.pipe, 4, renderer.batch, **renderer.common)(requests)
        times = {name: median(values) for name, values in stopwatch.seconds.items()}
        seconds |= times
        step = max(step, sum(times.values()))
    return CostModel(seconds, step)


def _now(feature: Feature) -> float:
    if feature and feature[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
