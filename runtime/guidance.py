"""One half of guidance follows the other: the blocks compute, or are forecast for, one half of the batch.

Conditional and unconditional outputs move together. What tells them apart is smaller and changes more slowly than
either, so it needs to be computed less often (FasterCache's observation, arXiv 2410.19355). A runner is shown the
followed half as the stack of blocks, and the difference of the other half from it as the unit `guidance`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cachesmith.policies import PolicyError
from cachesmith.runtime.forecast.history import Feature, alike
from cachesmith.runtime.hooks.clock import Tick
from cachesmith.runtime.hooks.runner import Foreseeing
from cachesmith.runtime.models.units import Unit
from cachesmith.runtime.stats import UNGUIDED

PER_TOKEN = ("rotary", "freqs")
"""Arguments named like these hold a row per token, not per sample, unless they have more than two axes."""


@dataclass(frozen=True)
class Half:
    """The blocks are to be computed for `rows` of a batch of `total`; `complete` makes the whole batch's output.

    Which arguments have rows is told from their extents and, of rows per token, from their names.
    """

    rows: slice
    total: int
    complete: Callable[[Feature], Feature]

    def take(self, name: str, value: Any) -> Any:
        """The rows of an argument: of every tensor in it that has one for each of the batch."""
        match value:
            case Tensor():
                per_token = value.ndim < 3 and any(part in name for part in PER_TOKEN)
                return value[self.rows] if value.shape[:1] == (self.total,) and not per_token else value
            case dict():
                return {key: self.take(key, item) for key, item in value.items()}
            case list() | tuple():
                return type(value)(self.take(name, item) for item in value)
            case _:
                return value

    def check(self, streams: Feature) -> None:
        """Raise `PolicyError` unless the streams have the half's rows, as between blocks that pass them on."""
        if any(len(stream) != self.total // 2 for stream in streams):
            raise PolicyError(
                f"half of a guided batch of {self.total} rows is computed alone, but a block was given "
                f"{[len(stream) for stream in streams]} rows, as where a ControlNet adds to every block's output; use "
                "a profile without a follower"
            )


class InBatch:
    """The halves are one batch: shows `runner` one of them as the blocks, and the other as the unit `guidance`."""

    def __init__(self, runner: Foreseeing, guidance: Unit):
        self.runner, self.guidance = runner, guidance
        self._first = guidance.follower == "first"

    def forecast(self, unit: Unit, inputs: Feature) -> Feature | Half | None:
        """Return the whole batch's forecast, the half that is to be computed, or None to have all of it computed."""
        leading = self._leading(inputs)
        if self.runner.computes(self.guidance, leading):
            return None
        known = self.runner.forecast(unit, leading)
        if isinstance(known, tuple):
            return self._both(inputs, leading, known)

        def complete(computed: Feature) -> Feature:
            self.runner.observe(unit, tuple(half.clone() for half in leading), computed)
            result = self._both(inputs, leading, computed)
            if result is None:
                raise PolicyError(
                    "the difference between the halves of guidance could not be forecast, since it was not finite; "
                    "sample in bfloat16 or float32, or use a profile without a follower"
                )
            return result

        return Half(self._rows(inputs[0]), len(inputs[0]), complete)

    def observe(self, unit: Unit, inputs: Feature, outputs: Feature) -> None:
        """All of the batch was computed."""
        # a view would keep the other half alive for as long as it is remembered
        leading = tuple(half.clone() for half in self._leading(inputs))
        made = self._leading(outputs)
        self.runner.observe(unit, leading, made)
        added = _minus(made, leading)
        others = _minus(self._following(outputs), self._following(inputs))
        self.runner.observe(self.guidance, added, _minus(others, added))

    def _both(self, inputs: Feature, leading: Feature, known: Feature) -> Feature | None:
        """The whole batch's output from the half that is known."""
        others = _follow(self.runner, self.guidance, self._following(inputs), _minus(known, leading))
        if others is None:
            return None
        order = (others, known) if self._first else (known, others)
        return tuple(torch.cat(pair) for pair in zip(*order, strict=True))

    def _rows(self, tensor: Tensor) -> slice:
        half = len(tensor) // 2
        return slice(half, None) if self._first else slice(half)

    def _leading(self, feature: Feature) -> Feature:
        return tuple(tensor[self._rows(tensor)] for tensor in feature)

    def _following(self, feature: Feature) -> Feature:
        return tuple(tensor.chunk(2)[0 if self._first else 1] for tensor in feature)


class InCalls:
    """The halves are calls of their own: the first of a step leads, every other follows. `leads`: the call in hand."""

    def __init__(self, runner: Foreseeing, guidance: Unit):
        self.runner, self.guidance, self.leads = runner, guidance, True
        self._added: Feature = ()

    def forecast(self, unit: Unit, inputs: Feature) -> Feature | None:
        """Return the call's forecast, or None to have it computed."""
        if not self.leads:
            computed = self.runner.computes(self.guidance, inputs)
            return None if computed else _follow(self.runner, self.guidance, inputs, self._added)
        known = self.runner.forecast(unit, inputs)
        if not isinstance(known, tuple):
            return None
        self._added = _minus(known, inputs)
        return known

    def observe(self, unit: Unit, inputs: Feature, outputs: Feature) -> None:
        """The call was computed."""
        added = _minus(outputs, inputs)
        if self.leads:
            self._added = added
            self.runner.observe(unit, inputs, outputs)
        elif alike(added, self._added):
            self.runner.observe(self.guidance, self._added, _minus(added, self._added))
        else:
            # captions of other lengths: what is remembered fits no later call, which is computed for that reason
            self.runner.observe(self.guidance, inputs, added)


class Halves:
    """Stands between the blocks and a runner, and shows it the halves of guidance."""

    def __init__(self, runner: Foreseeing, guidance: Unit):
        self.runner = runner
        self._way = InCalls(runner, guidance) if guidance.follower == "later" else InBatch(runner, guidance)
        self._first = Tick(-1, None, "")
        self._rows = 0
        self._guided = False

    def begin(self, tick: Tick, latents: Any) -> None:
        """A transformer call for `latents`. A batch that is not two halves of the same samples is all computed."""
        if tick.run != self._first.run:
            self._first = tick
            self._rows = len(latents) if _twice(latents) else 0
        if isinstance(self._way, InCalls):
            self._way.leads = tick.branch == self._first.branch
        self._guided = isinstance(self._way, InCalls) or len(latents) == self._rows
        self.runner.begin(tick if self._guided else replace(tick, step=None, why=UNGUIDED))

    def forecast(self, unit: Unit, inputs: Feature) -> Feature | Half | None:
        """Return what is known of the output without computing it, the half to compute, or None."""
        return self._way.forecast(unit, inputs) if self._guided else None

    def observe(self, unit: Unit, inputs: Feature, outputs: Feature) -> None:
        """The blocks were computed for all that they were called for."""
        (self._way if self._guided else self.runner).observe(unit, inputs, outputs)


def _twice(latents: Any) -> bool:
    """Whether a batch holds every sample twice, as guidance makes it. Looks at the device: once a run."""
    return isinstance(latents, Tensor) and len(latents) % 2 == 0 and torch.equal(*latents.chunk(2))


def _follow(runner: Foreseeing, guidance: Unit, inputs: Feature, added: Feature) -> Feature | None:
    """Outputs of the half that follows, from what the blocks `added` to the other; None where nothing is known."""
    differs = runner.forecast(guidance, added)
    if not isinstance(differs, tuple):
        return None
    return tuple((now + more).add_(other) for now, more, other in zip(inputs, added, differs, strict=True))


def _minus(a: Feature, b: Feature) -> Feature:
    return tuple(x - y for x, y in zip(a, b, strict=True))
