"""Normal equations of one segment, summed over samples, tokens and combinations of the latents."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.axes import AXES, axes
from cachesmith.calibrate.closed_loop.lanes import Schedule
from cachesmith.calibrate.closed_loop.loop import Note

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


class Equations:
    """gram [folds, unknowns, unknowns] = sum w D^T D and right = sum w D^T r, D = d (latents at the end) / d theta.

    Unknowns are ordered by lane, axis and channel. D is never stored: a backward pass from a combination of the latents
    through sampler, guidance, tail and embedder gives its derivative in every forecast, and so a row of D for every
    token. Where latents depend on forecasts of one token, gram is exact; where they do not, it lacks what couples
    tokens. `right` is exact in any case, and both are in float32. `share`: part of the tokens that are summed over,
    drawn for each sample by its number; `count`: how many they are in all. `width`: latents of a token.
    """

    def __init__(
        self, folds: int, schedule: Schedule, channels: int, device: torch.device, share: float = 1.0
    ):
        self.schedule, self.channels, self.share = schedule, channels, share
        self.shape = (len(schedule.lanes), AXES, channels)
        size = len(schedule.lanes) * AXES * channels
        self.gram = torch.zeros(folds, size, size, device=device)
        self.right = torch.zeros(folds, size, device=device)
        self.energy = torch.zeros(self.shape, device=device)
        self.count, self.width = 0, 1

    def add(
        self,
        end: Tensor,
        miss: Tensor,
        weight: Tensor,
        folds: Tensor,
        notes: list[Note],
        combinations: list[Tensor],
        numbers: Sequence[int],
    ) -> None:
        """Add one batch: latents `end` [N, ...] with a graph to `notes`, what they `miss`, and samples' weights [N].

        numbers: of the samples, which say what tokens are drawn.
        """
        count = notes[0].output.shape[1]
        tokens = _drawn(numbers, count, self.share)
        self.width = end[0].numel() // count
        design = _Design(end, notes, self.schedule, self.channels, tokens.to(end.device))
        weights = weight.view(-1, *(1,) * (end.ndim - 1))
        self.count += tokens.numel()
        present = sorted(set(folds.tolist()))
        rows = design.rows(miss * weights)
        for fold in present:
            self.right[fold] += rows[folds == fold].sum((0, 1))
        for combination in combinations:
            rows = design.rows(combination * weights.sqrt(), self.energy)
            for fold in present:
                _add_square(self.gram[fold], rows[folds == fold].flatten(0, 1))
        for fold in present:
            _mirror(self.gram[fold])

    def to(self, device: torch.device) -> "Equations":
        """Move all sums."""
        self.gram, self.right, self.energy = (
            each.to(device) for each in (self.gram, self.right, self.energy)
        )
        return self

    def merge(self, other: "Equations") -> "Equations":
        """Add those of other samples, wherever they are."""
        for fold in other.folds:
            self.gram[fold] += other.gram[fold].to(self.gram)
            self.right[fold] += other.right[fold].to(self.right)
        self.energy += other.energy.to(self.energy)
        self.count, self.width = self.count + other.count, other.width
        return self

    @property
    def folds(self) -> list[int]:
        """Those that have samples."""
        return [fold for fold, gram in enumerate(self.gram) if bool(gram.diagonal().any())]

    def target(self, theta: Tensor) -> Tensor:
        """Each fold's right side for the weights themselves, linearised at theta [folds, ...]: [folds, unknowns]."""
        return self.right + torch.einsum("fuv,fv->fu", self.gram, theta.flatten(1))

    def without(self, theta: Tensor, factor: float) -> Tensor:
        """Every fold's solution by the equations of all others: [folds, lanes, AXES, channels]."""
        folds = len(self.gram)
        if folds == 1:
            return solve(self.gram[0] + self.ridge(factor), self.target(theta)[0]).view_as(theta)
        gram, target, ridge = self.gram.sum(0), self.target(theta), self.ridge(factor * (1 - 1 / folds))
        total = target.sum(0)
        each = [solve(gram - self.gram[fold] + ridge, total - target[fold]) for fold in range(folds)]
        return torch.stack(each).view_as(theta)

    def ridge(self, factor: float) -> Tensor:
        """The ridge, relative to the mean curvature of an axis and, by half, to the energy of the channel along it."""
        size = self.gram.sum(0).diagonal().view(self.shape).mean(2, keepdim=True)
        missing = size.expand(self.shape).flatten() <= 0
        size = size.clamp_min(_LEAST * size.max())
        own = size * self.energy / self.energy.mean(2, keepdim=True).clamp_min(_TINY)
        ridge = torch.diag((OWN * own + (1 - OWN) * size).flatten())
        common = ((SHARED - 1) * (1 - OWN) / self.channels * size).flatten()
        for index, value in enumerate(common):
            block = slice(index * self.channels, (index + 1) * self.channels)
            ridge[block, block] += value
        # what the segment's forecasts do not have stays at zero
        ridge.diagonal()[missing] = 1.0
        return factor * ridge


class _Design:
    """One batch's D, row by row, of some of each sample's tokens [N, ...]."""

    def __init__(self, end: Tensor, notes: list[Note], schedule: Schedule, channels: int, tokens: Tensor):
        self.end, self.notes, self.drawn = end, notes, tokens.shape
        self.shape = (len(schedule.lanes), AXES, channels)
        self.outputs = [note.output for note in notes]
        changes = [_changes(note, schedule.lanes[note.lane]) for note in notes]
        rows = torch.arange(notes[0].output.shape[0], device=end.device)[:, None]
        self.index = rows, tokens[rows[:, 0] % len(end)]
        self.sizes = [change.square().sum(2) for change in changes]
        self.changes = [change[:, *self.index] for change in changes]

    def rows(self, combination: Tensor, energy: Tensor | None = None) -> Tensor:
        """The derivative of `combination` [N, ...] of the latents: [N, tokens, unknowns]; `energy` is added to.

        Rows of a batch that is guided in one are the samples' several times over, and add up.
        """
        adjoints = torch.autograd.grad(
            self.end, self.outputs, combination.expand_as(self.end), retain_graph=True
        )
        samples = len(self.end)
        total = self.end.new_zeros(*self.drawn, *self.shape, dtype=torch.float32)
        for adjoint, note, change, size in zip(adjoints, self.notes, self.changes, self.sizes, strict=True):
            if energy is not None:
                each = adjoint.float().square().mean((1, 2))
                energy[note.lane] += torch.einsum("r,krc->kc", each, size)
            some = adjoint[self.index].float()
            for axis, moved in enumerate(change):
                for part, move in zip(torch.split(some, samples), torch.split(moved, samples), strict=True):
                    total[:, :, note.lane, axis].addcmul_(part, move)
        return total.flatten(2)


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


def _drawn(numbers: Sequence[int], count: int, share: float) -> Tensor:
    """So many of each sample's tokens, drawn by its number: [N, round(share count)]."""
    wanted = max(1, round(share * count))
    generators = [torch.Generator().manual_seed(number) for number in numbers]
    return torch.stack([torch.randperm(count, generator=each)[:wanted] for each in generators])


def _changes(note: Note, mask: str) -> Tensor:
    """What one unit of each unknown adds to a forecast: [AXES, rows, tokens, channels]."""
    table = axes(mask, note.step)
    found = torch.zeros(AXES, *note.output.shape, device=note.output.device)
    for index, axis in table.nonzero().tolist():
        found[axis] += table[index, axis] * note.raw[index].detach().float()
    return found


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve a positive definite system; in float64 where float32 does not see that it is one."""
    solution: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        solution = torch.linalg.solve(matrix.double(), right.double())
        return solution.float()
    solution = torch.cholesky_solve(right[:, None], factor)[:, 0]
    return solution


def factored(matrix: Tensor) -> Tensor:
    """The Cholesky factor of a curvature; where rounding made it indefinite, its diagonal is raised first."""
    mean = matrix.diagonal().mean().clamp_min(torch.finfo(matrix.dtype).tiny)
    raised, lift = matrix.clone(), 1e-7
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(raised)
    while failed and lift < 1:
        raised.diagonal().add_(lift * mean)
        factor, failed = torch.linalg.cholesky_ex(raised)
        lift *= 10
    return factor
