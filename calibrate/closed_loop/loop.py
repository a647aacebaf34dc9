"""A runner whose weights are tensors: they may differ from sample to sample, and carry gradients."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.axes import TAPS
from cachesmith.calibrate.closed_loop.lanes import Schedule
from cachesmith.calibrate.closed_loop.replay import rows_of
from cachesmith.policies import GUIDANCE, PolicyError, halves
from cachesmith.runtime import (
    COMPUTE_ALL,
    Answer,
    BlockRun,
    Feature,
    Tick,
    Unit,
    UnitCall,
    UnitResult,
    UseOutput,
)
from cachesmith.runtime.features import alike
from cachesmith.runtime.hooks.watch import watch_each
from cachesmith.runtime.runs.guidance import guided

StepWeights = Mapping[int, Tensor]
"""By step, [lanes, RAW, channels], or [folds, lanes, RAW, channels]; the channels are those of all streams in a row."""


@dataclass(frozen=True)
class Note:
    """One forecast: of which lane and stream, at which step, from what [RAW tensors of rows, tokens, channels], and
    itself."""

    lane: int
    stream: int
    step: int
    raw: list[Tensor]
    output: Tensor


class Past:
    """What is remembered of a batch: by branch and unit, (inputs, outputs) of computed steps, newest first, and which
    step the newest is; answers: outputs of the newest step's blocks."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], list[tuple[Feature, Feature]]] = {}
        self.newest: dict[tuple[str, str], int] = {}
        self.answers: dict[tuple[int, str], Feature] = {}

    def forget(self, name: tuple[str, str]) -> None:
        """Nothing is known of a branch's unit any more."""
        self.known.pop(name, None)
        self.newest.pop(name, None)

    def on(self, device: torch.device) -> "Past":
        """The same on a device; what is learnt there is not known here."""
        return self._made(lambda tensor: tensor.to(device))

    def part(self, places: Tensor, samples: int) -> "Past":
        """Some of the batch's `samples`."""
        return self._made(lambda tensor: rows_of(tensor, places, samples))

    def _made(self, change: Callable[[Tensor], Tensor]) -> "Past":
        def all_of(feature: Feature) -> Feature:
            return tuple(change(each) for each in feature)

        past = Past()
        past.known = {name: [(all_of(a), all_of(b)) for a, b in pairs] for name, pairs in self.known.items()}
        past.newest = dict(self.newest)
        past.answers = {name: all_of(found) for name, found in self.answers.items()}
        return past


class Loop:
    """Forecasts the stack, and a follower's difference from it, by `weights` from `past`.

    folds: the fold of each sample, or None where all samples have the same weights. With `notes`, every forecast is
    noted and made a place where gradients can be asked for.
    """

    def __init__(
        self,
        mask: str,
        weights: StepWeights,
        past: Past,
        folds: Tensor | None,
        notes: list[Note] | None = None,
    ):
        self.weights, self.past, self.folds, self.notes = weights, past, folds, notes
        self._leading, self._following = halves(mask)
        self._tick = Tick(0, None, "")
        self._made: list[tuple[str, str]] = []

    def begin(self, tick: Tick) -> None:
        """A transformer call. What was made in another run of the pipeline's call, which fills a cache before the run
        that is stepped, is no history of this one."""
        if tick.run != self._tick.run:
            while self._made:
                self.past.forget(self._made.pop())
        self._tick = tick

    def computes(self, unit: Unit, inputs: Feature) -> bool:
        """Whether the schedule has `unit` computed."""
        letters = self._following if unit.group == GUIDANCE else self._leading
        return self._tick.step is None or letters[self._tick.step] == "C"

    def answer(self, call: UnitCall) -> Answer:
        """sum_j w_j F_j + sum_j u_j I_j + u I per channel (+ I, for blocks); on computed steps, what is known."""
        unit, step = call.unit, self._tick.step
        if step is None:
            return COMPUTE_ALL
        if self.computes(unit, call.inputs):
            half = self._following[step] != "C"
            known = self.past.answers.get((step, self._tick.branch)) if half else None
            return COMPUTE_ALL if known is None else UseOutput(known)
        past, lane = self._known(call), unit.lane // len(call.inputs)
        rows = self._rows(step, lane, call.inputs[0])
        each = torch.split(rows, [now.shape[-1] for now in call.inputs], -1)
        streams = zip(each, call.inputs, strict=True)
        return UseOutput(
            tuple(self._forecast(unit, stream, past, *pair) for stream, pair in enumerate(streams))
        )

    def _rows(self, step: int, lane: int, like: Tensor) -> Tensor:
        """Weights of all streams [1 or rows of the batch, RAW, channels]."""
        rows = self.weights[step][..., lane, :, :]
        if self.folds is None or rows.ndim == 2:
            return rows[None]
        samples = torch.arange(len(like), device=like.device) % len(self.folds)
        return rows[self.folds.to(like.device)[samples]]

    def _forecast(
        self, unit: Unit, stream: int, past: Sequence[tuple[Feature, Feature]], rows: Tensor, now: Tensor
    ) -> Tensor:
        raw = _raw(past, stream, now)
        total = now.float() if isinstance(unit, BlockRun) else torch.zeros_like(now, dtype=torch.float32)
        for index, tensor in enumerate(raw):
            # not widened: a graph would keep a copy of every tap for every step
            total = torch.addcmul(total, rows[:, index, None], tensor)
        output = total.to(now.dtype)
        if self.notes is not None:
            if not output.requires_grad:
                output.requires_grad_()
            assert self._tick.step is not None, "it is forecast"
            self.notes.append(Note(unit.lane // len(unit.streams), stream, self._tick.step, raw, output))
        return output

    def _known(self, call: UnitCall) -> list[tuple[Feature, Feature]]:
        known = self.past.known.get((self._tick.branch, call.unit.name))
        if known is None or not alike(known[0][0], call.inputs):
            raise PolicyError(
                f"a run is at step {self._tick.step} before anything is computed that it can be forecast from: "
                "requests that begin at several steps, as with several values of `strength`, or that are guided at "
                "others, cannot be calibrated together; give one kind of them"
            )
        return known

    def observe(self, result: UnitResult) -> None:
        """Remember a computed step."""
        if self._tick.step is None:
            return
        name = self._tick.branch, result.unit.name
        if self._tick.step <= self.past.newest.get(name, -1):
            return  # made again, for what the call leaves in a cache
        self.past.newest[name] = self._tick.step
        self._made.append(name)
        known = self.past.known.setdefault(name, [])
        if known and not alike(known[0][0], result.inputs):
            known.clear()  # guidance came on or went off: nothing fits the rows that there are now
        known.insert(0, (result.inputs, result.feature))
        del known[TAPS:]
        if result.unit.group != GUIDANCE:
            self.past.answers = {k: v for k, v in self.past.answers.items() if k[0] == self._tick.step}
            self.past.answers[self._tick.step, self._tick.branch] = result.outputs

    def end(self, output: Tensor) -> bool:
        """The call is over."""
        return False


def _raw(known: Sequence[tuple[Feature, Feature]], stream: int, now: Tensor) -> list[Tensor]:
    """What one stream's forecast is linear in: `RAW` tensors."""
    nothing = torch.zeros((), dtype=now.dtype, device=now.device)
    missing = [nothing] * (TAPS - len(known))
    made = [outputs[stream] for _, outputs in known]
    entered = [inputs[stream] for inputs, _ in known]
    return [*made, *missing, *entered, *missing, now]


def attached(pipe: Any, schedule: Schedule, loop: Loop) -> AbstractContextManager[None]:
    """Attach a loop to a pipeline's denoisers; where a half of guidance follows, it is shown the halves."""
    return watch_each(pipe, schedule.stack, lambda _, units: guided(loop, units, loop.computes))
