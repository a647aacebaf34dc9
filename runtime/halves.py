"""One half of guidance follows the other: the blocks compute, or are forecast for, one half of the batch.

Conditional and unconditional outputs move together. What tells them apart is smaller and changes more slowly than
either, so it needs to be computed less often (FasterCache's observation, arXiv 2410.19355). A runner is shown the
followed half as the stack of blocks, and the difference of the other half from it as the unit `guidance`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cachesmith.policies import PolicyError
from cachesmith.runtime.clock import Tick
from cachesmith.runtime.history import Feature
from cachesmith.runtime.refresh import Partial
from cachesmith.runtime.runner import Foreseeing
from cachesmith.runtime.units import Unit

PER_TOKEN = ("rotary", "freqs")
"""Arguments named like these hold a row per token, not per sample, unless they have more than two axes."""


@dataclass(frozen=True)
class Half:
    """The blocks are to be computed for `rows` of a batch of `total`; `complete` makes the whole batch's output."""

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
                "the transformer does something between its blocks, as for a ControlNet, which the half of guidance "
                "that is computed alone cannot take; use a profile without a follower"
            )


class Halves:
    """Shows `runner` the halves of every batch: one as the blocks, one as the unit `guidance`."""

    def __init__(self, runner: Foreseeing, guidance: Unit):
        self.runner, self.guidance = runner, guidance
        self._tick = Tick(0, None, "")
        self._checked = -1

    def begin(self, tick: Tick) -> None:
        """A transformer call."""
        self._tick = tick
        self.runner.begin(tick)

    def check(self, latents: Any) -> None:
        """Raise `PolicyError` unless both halves of the batch are the same samples. Looks at each run's first call."""
        if self._checked == self._tick.run:
            return
        self._checked = self._tick.run
        guided = isinstance(latents, Tensor) and len(latents) % 2 == 0 and torch.equal(*latents.chunk(2))
        if not guided:
            raise PolicyError(
                "the policy has one half of a guided batch follow the other, but this batch is not two halves of the "
                "same samples; sample with guidance, or use a policy for sampling without"
            )

    def forecast(self, unit: Unit, inputs: Feature) -> Feature | Half | None:
        """Return the whole batch's forecast, the half that is to be computed, or None to have all of it computed."""
        leading = tuple(half.contiguous() for half in self._leading(inputs))
        if self.runner.computes(self.guidance, leading):
            return None
        known = self.runner.forecast(unit, leading)
        assert not isinstance(known, Partial), "a stack is not computed token by token"
        if known is not None:
            return self._followed(inputs, leading, known)

        def complete(computed: Feature) -> Feature:
            self.runner.observe(unit, tuple(half.clone() for half in leading), computed)
            return self._followed(inputs, leading, computed)

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

    def _followed(self, inputs: Feature, leading: Feature, known: Feature) -> Feature:
        """The whole batch's output from the half that is known."""
        added = _minus(known, leading)
        differs = self.runner.forecast(self.guidance, added)
        if not isinstance(differs, tuple):
            raise PolicyError(
                "the difference between the halves of guidance could not be forecast, since it was not finite; sample "
                "in bfloat16 or float32, or use a profile without a follower"
            )
        parts = zip(self._following(inputs), added, differs, known, strict=True)
        return tuple(self._joined(lead, now + add + more) for now, add, more, lead in parts)

    def _joined(self, leading: Tensor, following: Tensor) -> Tensor:
        return torch.cat((following, leading) if self.guidance.follower == "first" else (leading, following))

    def _rows(self, tensor: Tensor) -> slice:
        half = len(tensor) // 2
        return slice(half, None) if self.guidance.follower == "first" else slice(half)

    def _leading(self, feature: Feature) -> Feature:
        return tuple(tensor[self._rows(tensor)] for tensor in feature)

    def _following(self, feature: Feature) -> Feature:
        return tuple(tensor.chunk(2)[0 if self.guidance.follower == "first" else 1] for tensor in feature)


def _minus(a: Feature, b: Feature) -> Feature:
    return tuple(x - y for x, y in zip(a, b, strict=True))
