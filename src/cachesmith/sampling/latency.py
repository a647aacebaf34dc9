"""How long single pipeline calls take, within a run of many."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np


class Stopwatch:
    """Takes the seconds between calls of `lap`, over several runs.

    A renderer calls `lap` when a batch's pictures are in host memory, so an accelerator's queue is empty by then.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def start(self) -> None:
        """A run begins."""
        self._last = perf_counter()

    def lap(self, _: int = 1) -> None:
        """A call is done."""
        now = perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


@dataclass(frozen=True)
class Latency:
    """Seconds of one pipeline call, over `calls` of them, and how many pictures an hour of such calls makes."""

    calls: int
    p50: float
    p90: float
    p99: float
    pictures_per_hour: float


def latency(calls: Sequence[float], pictures_per_hour: float) -> Latency:
    """Sum up the seconds of calls; percentiles are interpolated between neighbours."""
    p50, p90, p99 = (float(value) for value in np.percentile(calls, [50, 90, 99]))
    return Latency(len(calls), p50, p90, p99, pictures_per_hour)
