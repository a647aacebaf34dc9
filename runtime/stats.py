"""What happened in a session."""

import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

UNKNOWN_STEP = "the timestep is not on the scheduler's list"
UNGUIDED = "the batch is not the same samples twice, as guidance makes it"
UNLED = "the call that leads guidance left the first or last block out, so nothing can follow it"
CHANGED_SHAPE = "the batch, shape, dtype or device changed during a run"
UNEXPECTED = "a module returned another number of tensors than its adapter says"
REPEATED = "a module is called several times in one transformer call, as with chunked feed-forward layers"
NOT_WHOLE = "a call left the first or last block out, as skip-layer guidance does"
OTHER_HISTORY = "what is remembered is not what was planned"
NON_FINITE = "a forecast was not finite"
NON_FINITE_OUTPUT = "a computed output was not finite, so nothing can be forecast from it"
NON_FINITE_RUN = "values of a finished run were not finite"

_KEPT = 10_000
"""Entries of a trace that are kept: whole runs, the last ones."""

KEPT_RUNS = 32
"""Runs whose computations are kept one by one."""


class Trace(NamedTuple):
    """One transformer call: what the gate decided, and what a dynamic gate measured.

    `decision`: `C` to compute, `F` to forecast, `CF` where a schedule by groups does some of each. What was computed
    all the same is counted in `Stats.fallbacks`.
    """

    run: int
    step: int
    branch: str
    decision: str
    measured: float | None


@dataclass
class Stats:
    """Counts of one session, over all its runs. `refreshed`: what computing single tokens adds up to, in computations
    of the unit."""

    computed: Counter[str] = field(default_factory=Counter)
    forecast: Counter[str] = field(default_factory=Counter)
    refreshed: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    fallbacks: Counter[str] = field(default_factory=Counter)
    trace: list[Trace] = field(default_factory=list)
    cache_bytes: int = 0
    _executed: dict[tuple[int, str], float] = field(default_factory=lambda: defaultdict(float))
    _earlier: tuple[float, int] = (0.0, 0)

    @property
    def nfc(self) -> float:
        """Full computations per run and branch: block executions / blocks."""
        total, count = self._earlier
        total, count = total + sum(self._executed.values()), count + len(self._executed)
        return total / count if count else 0.0

    @property
    def runs(self) -> dict[int, dict[str, float]]:
        """Full computations of each of the last runs, by guidance branch: what a server logs of a request."""
        by_run: dict[int, dict[str, float]] = {}
        for (run, branch), executed in self._executed.items():
            by_run.setdefault(run, {})[branch] = executed
        return by_run

    def start_run(self) -> None:
        """A run begins: of the oldest ones only the sums are kept, so that a server's session does not grow."""
        runs = list(dict.fromkeys(run for run, _ in self._executed))
        for run in runs[: max(0, len(runs) - KEPT_RUNS + 1)]:
            for key in [key for key in self._executed if key[0] == run]:
                total, count = self._earlier
                self._earlier = total + self._executed.pop(key), count + 1
        if len(self.trace) > _KEPT:
            oldest = self.trace[-_KEPT].run
            self.trace[:] = [entry for entry in self.trace[-_KEPT:] if entry.run != oldest]

    def count_computed(self, unit: str, share: float, run: int, branch: str) -> None:
        """A unit that makes up `share` of all blocks was computed."""
        self.computed[unit] += 1
        self._executed[run, branch] += share

    def count_whole(self, run: int, branch: str) -> None:
        """A call was computed in which no unit was called from its first to its last member: one full computation."""
        self._executed[run, branch] += 1.0

    def count_refreshed(self, unit: str, fraction: float, share: float, run: int, branch: str) -> None:
        """This fraction of a forecast unit's tokens was computed."""
        self.refreshed[unit] += fraction
        self._executed[run, branch] += fraction * share

    def fall_back(self, reason: str) -> None:
        """A forecast was asked for and refused: count it, and warn the first time."""
        if not self.fallbacks[reason]:
            warnings.warn(
                f"cachesmith computed a step instead of forecasting it: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
        self.fallbacks[reason] += 1

    def distrust(self) -> None:
        """What was noticed too late to compute instead."""
        warnings.warn(
            "cachesmith found, after a run, that some of its values were not finite; do not trust its pictures",
            RuntimeWarning,
            stacklevel=2,
        )
        self.fallbacks[NON_FINITE_RUN] += 1
