"""Uncached runs, step by step next to what a schedule would remember: a few outputs a lane, not whole trajectories."""

from collections.abc import Callable

from torch import Tensor

from cachesmith.runtime import Unit, UnitResult, Watcher

RecentOutputs = list[tuple[int, Tensor]]
"""Remembered steps and their outputs, newest first."""

_Note = Callable[[Unit, int, int, RecentOutputs, Tensor], None]
"""`note(unit, lane, step, past, output)`: outputs [samples, ..., channels], float32; residuals for runs of blocks."""


class ScheduleRecorder(Watcher):
    """Shows every output to `note`, next to the last `taps` remembered ones.

    `mask` says which steps are remembered (C); None: all of them. They are kept in the model's dtype: those of every
    lane are there at once, and shown in float32 one lane at a time.
    """

    def __init__(self, note: _Note, taps: int, mask: str | None = None):
        super().__init__()
        self._note, self._taps, self._mask = note, taps, mask
        self._past: dict[tuple[int, str], RecentOutputs] = {}

    def restart(self) -> None:
        """Forget the run before."""
        self._past.clear()

    def observe(self, result: UnitResult) -> None:
        """Show a computed unit, then remember it if the schedule does."""
        step = self._tick.step
        if step is None:
            return
        for lane, feature in enumerate(result.feature, start=result.unit.lane):
            past = self._past.setdefault((lane, self._tick.branch), [])
            shown = [(before, output.float()) for before, output in past]
            self._note(result.unit, lane, step, shown, feature.float())
            if self._mask is None or self._mask[step] == "C":
                past.insert(0, (step, feature))
                del past[self._taps :]
