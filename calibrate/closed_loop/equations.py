"""Normal equations of one stream in one segment, summed over samples, tokens and combinations of the latents."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.axes import AXES
from cachesmith.calibrate.closed_loop.lanes import Schedule
from cachesmith.sampling.out_of_memory import out_of_memory

OWN = 0.5
"""Part of the ridge on a channel that is weighted by its own energy; the rest is the same for all channels."""

SHARED = 0.1
"""What all channels have in common is pulled by this much of the ridge."""

_LEAST = 1e-2
"""Of the largest axis's size, the ridge counts every axis as at least this large.

What hardly moves latents (a difference of inputs early in a run, the rounding of one that is nothing) would get weights
in the hundreds, and with these the segment is no longer linear in them.
"""

_TINY = 1e-30

BLOCKS = 6
"""Of columns: those of a symmetric matrix that are right of a block are not multiplied out."""


@dataclass(frozen=True)
class Halves:
    """`Equations` as they travel: of folds that have samples alone, and of each matrix the lower half, row by row."""

    gram: dict[int, Tensor]
    right: Tensor
    energy: Tensor
    count: int
    tokens: int

    @property
    def folds(self) -> list[int]:
        """Those that have samples."""
        return [*self.gram]

    def square(self, fold: int) -> Tensor:
        """A fold's gram, [unknowns, unknowns]."""
        size = self.right.shape[1]
        gram = torch.zeros(size, size)
        for row, part in zip(gram, torch.split(self.gram[fold], [*range(1, size + 1)]), strict=True):
            row[: len(part)] = part
        _mirror(gram)
        for block in _blocks(gram):
            corner = gram[block, block]
            corner += corner.tril(-1).T
        return gram


class Equations:
    """gram [folds, unknowns, unknowns] = sum w D^T D and right = sum w D^T r, D = d (latents at the end) / d theta.

    Unknowns are ordered by lane, axis and channel. D is never stored: a backward pass from a combination of the latents
    through sampler, guidance, tail and embedder gives its derivative in every forecast, and so a row of D for every
    token, see `Design`. Where latents depend on forecasts of one token, gram is exact; where they do not, it lacks what
    couples tokens. `right` is exact in any case, and both are in float32. `tokens`: of a sample; `count`: how many were
    summed over in all. A gram is large where channels are many: grams rest on the host, but for those of the folds in
    hand.
    """

    def __init__(self, folds: int, schedule: Schedule, channels: int, device: torch.device):
        self.channels = channels
        self.shape = (len(schedule.lanes), AXES, channels)
        size = len(schedule.lanes) * AXES * channels
        self.device = device
        self.gram = torch.zeros(folds, size, size)
        self._here: dict[int, Tensor] = {}
        self.right = torch.zeros(folds, size, device=device)
        self.energy = torch.zeros(self.shape, device=device)
        self.count, self.tokens = 0, 1

    def begin(self, folds: Tensor, summed: int, tokens: int) -> None:
        """A batch of samples in `folds` [N] is added: `summed` of its tokens; `tokens`: of one sample, in all."""
        self.count, self.tokens = self.count + summed, tokens
        self._bring(sorted(set(folds.tolist())))

    def add_right(self, rows: Tensor, folds: Tensor) -> None:
        """Add what weighed misses make of D: [N, tokens, unknowns]."""
        for fold in sorted(set(folds.tolist())):
            self.right[fold] += rows[folds == fold].sum((0, 1))

    def add_square(self, rows: Tensor, folds: Tensor) -> None:
        """Add the squares of rows of D [N, tokens, unknowns]."""
        for fold in sorted(set(folds.tolist())):
            _add_square(self._here[fold], rows[folds == fold].flatten(0, 1))

    def _bring(self, folds: Sequence[int]) -> None:
        """Have the grams of some folds on the device, and no others."""
        for fold in [*self._here]:
            if fold not in folds:
                gram = self._here.pop(fold)
                _mirror(gram)
                self.gram[fold].copy_(gram)
        self._here |= {fold: self.gram[fold].to(self.device) for fold in folds if fold not in self._here}

    def to(self, device: torch.device) -> "Equations":
        """Have all sums made and solved there."""
        self._bring(())
        self.device, self.right, self.energy = device, self.right.to(device), self.energy.to(device)
        return self

    def __reduce__(self) -> tuple[type[Halves], tuple[Any, ...]]:
        """Pickled, they come back as `Halves`."""
        lower = {
            fold: torch.cat([row[: place + 1] for place, row in enumerate(self.gram[fold])])
            for fold in self.folds
        }
        return Halves, (lower, self.right, self.energy, self.count, self.tokens)

    def square(self, fold: int) -> Tensor:
        """A fold's gram, [unknowns, unknowns]."""
        return self.gram[fold]

    def merge(self, other: "Equations | Halves") -> "Equations":
        """Add those of other samples, wherever they are."""
        self._bring(())
        for fold in other.folds:
            self.gram[fold] += other.square(fold).to(self.gram)
            self.right[fold] += other.right[fold].to(self.right)
        self.energy += other.energy.to(self.energy)
        self.count, self.tokens = self.count + other.count, other.tokens
        return self

    @property
    def folds(self) -> list[int]:
        """Those that have samples."""
        self._bring(())
        return [fold for fold, gram in enumerate(self.gram) if bool(gram.diagonal().any())]

    def target(self, theta: Tensor) -> Tensor:
        """Each fold's right side for the weights themselves, linearised at theta [folds, ...]: [folds, unknowns]."""
        self._bring(())
        pairs = zip(self.gram, theta.flatten(1), strict=True)
        return self.right + torch.stack([gram.to(self.device) @ each for gram, each in pairs])

    def total(self) -> Tensor:
        """The gram of all folds, on the device."""
        self._bring(())
        total = self.gram[0].to(self.device, copy=True)
        for each in self.gram[1:]:
            total += each.to(self.device)
        return total

    def together(self, target: Tensor, factor: float) -> Tensor:
        """The solution by all equations: [lanes, AXES, channels]. target: see there."""
        return solve(lambda: self.damped(self.total(), factor), target.sum(0)).view(self.shape)

    def without(self, target: Tensor, factor: float) -> Tensor:
        """Every fold's solution by the equations of all others: [folds, lanes, AXES, channels]. target: see there."""
        folds, right = len(self.gram), target.sum(0) - target
        if folds == 1:
            return self.together(target, factor)[None]
        total, part = self.total(), factor * (1 - 1 / folds)
        found = [solve(partial(self._others, total, fold, part), right[fold]) for fold in range(folds)]
        return torch.stack(found).view(folds, *self.shape)

    def _others(self, total: Tensor, fold: int, factor: float) -> Tensor:
        gram = self.gram[fold].to(self.device, copy=True)
        return self.damped(torch.sub(total, gram, out=gram), factor)

    def damped(self, matrix: Tensor, factor: float) -> Tensor:
        """Add the ridge to `matrix`, in place.

        It is relative to the mean curvature of an axis and, by half, to the energy of the channel along it.
        """
        self._bring(())
        size = self.gram.diagonal(dim1=1, dim2=2).sum(0).to(self.device)
        size = size.view(self.shape).mean(2, keepdim=True)
        missing = size.expand(self.shape).flatten() <= 0
        size = size.clamp_min(_LEAST * size.max())
        own = size * self.energy / self.energy.mean(2, keepdim=True).clamp_min(_TINY)
        ridge = factor * (OWN * own + (1 - OWN) * size).flatten()
        common = factor * (SHARED - 1) * (1 - OWN) / self.channels * size.flatten()
        # what the segment's forecasts do not have stays at zero
        ridge[missing] = factor - common.repeat_interleave(self.channels)[missing]
        matrix.diagonal().add_(ridge)
        for index, value in enumerate(common):
            block = slice(index * self.channels, (index + 1) * self.channels)
            matrix[block, block] += value
        return matrix


def _add_square(gram: Tensor, rows: Tensor) -> None:
    """Add rows^T rows to the lower blocks of `gram`; the others are theirs, see `_mirror`."""
    for block in _blocks(gram):
        gram[block.start :, block].addmm_(rows[:, block.start :].T, rows[:, block])


def _mirror(gram: Tensor) -> None:
    """Fill the upper blocks of a symmetric matrix from the lower ones."""
    for block in _blocks(gram):
        gram[block, block.stop :] = gram[block.stop :, block].T


def _blocks(gram: Tensor) -> list[slice]:
    width = -(-len(gram) // BLOCKS)
    return [slice(start, min(start + width, len(gram))) for start in range(0, len(gram), width)]


def solve(matrix: Callable[[], Tensor], right: Tensor) -> Tensor:
    """Solve a positive definite system that `matrix` makes; in float64 where float32 does not see that it is one.

    Its factor takes the matrix's place: both together may not fit.
    """
    lower, failed = matrix().mT, torch.empty((), dtype=torch.int32, device=right.device)
    torch.linalg.cholesky_ex(lower, out=(lower, failed))
    if not int(failed):
        solution: Tensor = torch.cholesky_solve(right[:, None], lower)[:, 0]
        return solution
    del lower
    with out_of_memory():
        return _exactly(matrix(), right)
    return _exactly(matrix().cpu(), right.cpu()).to(right.device)


def _exactly(matrix: Tensor, right: Tensor) -> Tensor:
    solution: Tensor = torch.linalg.solve(matrix.double(), right.double())
    return solution.float()


def factored(matrix: Tensor) -> Tensor:
    """The Cholesky factor of a curvature; where rounding made it indefinite, its diagonal is raised first, in place."""
    mean = matrix.diagonal().mean().clamp_min(torch.finfo(matrix.dtype).tiny)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    lift = 1e-7
    while failed and lift < 1:
        matrix.diagonal().add_(lift * mean)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        lift *= 10
    return factor
