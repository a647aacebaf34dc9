"""The normal equations of a segment: a system for every stream that leaves the stack.

What a stream's forecasts do in a segment reaches the latents through that stream alone: only a computed step mixes
them. So each has equations of its own, in the channels and tokens that it has.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.design import Design, drawn
from cachesmith.calibrate.closed_loop.equations import Equations, Halves, factored
from cachesmith.calibrate.closed_loop.lanes import Schedule
from cachesmith.calibrate.closed_loop.loop import Note


class StackEquations:
    """channels: of each stream. Thetas [..., lanes, AXES, channels] are those of all streams in a row.

    share: part of the tokens that are summed over, drawn for each sample by its number. `width`: latents of a token of
    the first stream. Pickled, its `parts` come back as `Halves`.
    """

    def __init__(
        self,
        folds: int,
        schedule: Schedule,
        channels: Sequence[int],
        device: torch.device,
        share: float = 1.0,
    ):
        self.schedule, self.channels, self.share, self.width = schedule, [*channels], share, 1
        self.parts: list[Equations] = [Equations(folds, schedule, each, device) for each in channels]

    def add(
        self,
        end: Tensor,
        miss: Tensor,
        weight: Tensor,
        folds: Tensor,
        notes: Sequence[Note],
        combinations: Sequence[Tensor],
        numbers: Sequence[int],
    ) -> None:
        """Add one batch: latents `end` [N, ...] with a graph to `notes`, what they `miss`, and samples' weights [N].

        numbers: of the samples, which say what tokens are drawn.
        """
        counts = [forecast.shape[1] for forecast in last_of(notes)]
        tokens = [drawn(numbers, count, self.share) for count in counts]
        self.width = end[0].numel() // counts[0]
        design = Design(end, notes, self.schedule, tokens)
        weights = weight.view(-1, *(1,) * (end.ndim - 1))
        for part, some, count in zip(self.parts, tokens, counts, strict=True):
            part.begin(folds, some.numel(), count)
        for part, rows in zip(self.parts, design.rows(miss * weights), strict=True):
            part.add_right(rows, folds)
        energies = [part.energy for part in self.parts]
        for combination in combinations:
            found = design.rows(combination * weights.sqrt(), energies)
            for part, rows in zip(self.parts, found, strict=True):
                part.add_square(rows, folds)

    def to(self, device: torch.device) -> "StackEquations":
        """Have all sums made and solved there."""
        self.parts = [part.to(device) for part in self.parts]
        return self

    def merge(self, other: "StackEquations") -> "StackEquations":
        """Add those of other samples, wherever they are."""
        self.parts = [part.merge(more) for part, more in zip(self.parts, other.parts, strict=True)]
        self.width = other.width
        return self

    @property
    def packed(self) -> bool:
        """Whether they have travelled, and can only be merged."""
        return isinstance(self.parts[0], Halves)

    def target(self, theta: Tensor) -> list[Tensor]:
        """Of each stream, see `Equations.target`; theta [folds, ...]."""
        parts = zip(self.parts, torch.split(theta, self.channels, -1), strict=True)
        return [part.target(own) for part, own in parts]

    def without(self, target: Sequence[Tensor], factor: float) -> Tensor:
        """Every fold's solution by the equations of all others: [folds, lanes, AXES, channels]."""
        parts = zip(self.parts, target, strict=True)
        return torch.cat([part.without(own, factor) for part, own in parts], -1)

    def together(self, target: Sequence[Tensor], factor: float) -> Tensor:
        """The solution by all equations: [lanes, AXES, channels]."""
        parts = zip(self.parts, target, strict=True)
        return torch.cat([part.together(own, factor) for part, own in parts], -1)

    def factors(self, factor: float) -> tuple[Tensor, ...]:
        """Cholesky factors of each stream's curvature and ridge: means over samples and tokens of the first stream.

        Many segments' factors are large: they are on the host.
        """
        first = self.parts[0].tokens
        return tuple(
            factored(part.damped(part.total(), factor).div_(part.count * first / part.tokens)).cpu()
            for part in self.parts
        )


def last_of(notes: Sequence[Note]) -> list[Tensor]:
    """The last forecast of every stream, with its graph."""
    last = {note.stream: note.output for note in notes}
    return [last[stream] for stream in sorted(last)]
