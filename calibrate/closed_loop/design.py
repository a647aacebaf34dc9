"""How latents move with the weights of a segment, row by row: one row a token of each stream and a combination of the
latents, chosen so that a token's rows can be told apart."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.axes import AXES, axes
from cachesmith.calibrate.closed_loop.lanes import Schedule
from cachesmith.calibrate.closed_loop.loop import Note

TOKENS_A_SAMPLE = 512
"""Of a sample's tokens, so many are summed over at most: where there are thousands of channels, these are thousands of
equations a sample."""

_MOST = 16
"""Combinations at most: with fewer latents than this in a token, each is one; else they are mixed with random signs."""

_NONE = -1

UNSURE = 0.1
"""Rounding may move a share that is nothing or all by less."""


def drawn(numbers: Sequence[int], count: int, share: float) -> Tensor:
    """So many of each sample's tokens, drawn by its number: [N, round(share count)], at most `TOKENS_A_SAMPLE`."""
    wanted = min(TOKENS_A_SAMPLE, max(1, round(share * count)))
    generators = [torch.Generator().manual_seed(number) for number in numbers]
    return torch.stack([torch.randperm(count, generator=each)[:wanted] for each in generators])


class Design:
    """One batch's D for every stream, of some of each sample's tokens: tokens [N, drawn] a stream."""

    def __init__(self, end: Tensor, notes: Sequence[Note], schedule: Schedule, tokens: Sequence[Tensor]):
        self.end, self.notes, self.tokens = end, notes, [each.to(end.device) for each in tokens]
        self.lanes = len(schedule.lanes)
        self.outputs = [note.output for note in notes]
        self.indices = [self._index(note) for note in notes]
        made = [
            _changes(note, schedule.own(note.step).lanes[note.lane], index)
            for note, index in zip(notes, self.indices, strict=True)
        ]
        self.sizes, self.changes = [size for size, _ in made], [change for _, change in made]

    def rows(self, combination: Tensor, energies: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The derivative of `combination` [N, ...] of the latents, a stream: [N, tokens, unknowns].

        energies [lanes, AXES, channels] of each stream are added to. Rows of a batch that is guided in one are the
        samples' several times over, and add up.
        """
        adjoints = torch.autograd.grad(
            self.end, self.outputs, combination.expand_as(self.end), retain_graph=True, materialize_grads=True
        )
        samples, totals = len(self.end), self._nothing()
        for adjoint, note, index, change, size in zip(
            adjoints, self.notes, self.indices, self.changes, self.sizes, strict=True
        ):
            if energies is not None:
                each = adjoint.float().square().mean((1, 2))
                energies[note.stream][note.lane] += torch.einsum("r,krc->kc", each, size)
            some = adjoint[index].float()
            for axis, moved in enumerate(change):
                for part, move in zip(torch.split(some, samples), torch.split(moved, samples), strict=True):
                    totals[note.stream][:, :, note.lane, axis].addcmul_(part, move)
        return [total.flatten(2) for total in totals]

    def _nothing(self) -> list[Tensor]:
        channels = {note.stream: note.output.shape[-1] for note in self.notes}
        return [
            self.end.new_zeros(*tokens.shape, self.lanes, AXES, channels[stream], dtype=torch.float32)
            for stream, tokens in enumerate(self.tokens)
        ]

    def _index(self, note: Note) -> tuple[Tensor, Tensor]:
        """The drawn tokens of every row: calls of guidance have more rows than others, or fewer."""
        rows = torch.arange(len(note.output), device=self.end.device)[:, None]
        return rows, self.tokens[note.stream][rows[:, 0] % len(self.end)]


def _changes(note: Note, mask: str, index: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """What one unit of each unknown adds to a forecast: its squares over all tokens [AXES, rows, channels], and itself
    for the tokens of `index` [AXES, rows, tokens, channels]. One axis is made at a time.
    """
    sizes, changes = [], []
    for column in axes(mask, note.step).T:
        whole = torch.zeros(note.output.shape, device=note.output.device)
        for tap in column.nonzero().flatten().tolist():
            whole.add_(note.raw[tap].detach(), alpha=float(column[tap]))
        changes.append(whole[index])
        sizes.append(whole.square_().sum(1))
    return torch.stack(sizes), torch.stack(changes)


def combinations(end: Tensor, forecasts: Sequence[Tensor]) -> list[Tensor]:
    """Combinations of one sample's latents, each [...]: within a token, the sum of their squares is its latents'.

    end: [N, ...] with a graph to the forecasts [rows, tokens, channels] of all streams. With random signs that holds in
    the mean.
    """
    tokens = tokens_of(end, forecasts)
    if tokens is not None:
        order = tokens.flatten().argsort(stable=True)
        first = torch.cat([torch.zeros(1, dtype=torch.long), tokens.flatten().bincount().cumsum(0)[:-1]])
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order)) - first[tokens.flatten()[order]]
        count = int(rank.max()) + 1
        if count <= _MOST:
            return [(rank == i).float().view(tokens.shape).to(end.device) for i in range(count)]
    generator = torch.Generator().manual_seed(0)
    signs = 2 * torch.randint(2, (_MOST, *end.shape[1:]), generator=generator) - 1
    return list(signs.float().to(end.device) / _MOST**0.5)


def tokens_of(end: Tensor, forecasts: Sequence[Tensor]) -> Tensor | None:
    """The token that each latent of a sample depends on, [...], counted through all forecasts; None where it is not a
    single one.
    """
    found, first = torch.full(end.shape[1:], _NONE), 0
    for forecast in forecasts:
        own = _tokens_of(end, forecast)
        if own is None or bool(((own != _NONE) & (found != _NONE)).any()):
            return None
        found = torch.where(own != _NONE, first + own, found)
        first += forecast.shape[1]
    return None if bool((found == _NONE).any()) else found


def _tokens_of(end: Tensor, forecast: Tensor) -> Tensor | None:
    """The same for one forecast, with `_NONE` for latents that depend on no token of it.

    For each bit of a token's number, the derivative along one direction in the tokens that have the bit is all of that
    along it in all tokens, or nothing of it.
    """
    cotangent = torch.zeros_like(end, requires_grad=True)
    (adjoint,) = torch.autograd.grad(end, forecast, cotangent, create_graph=True)
    direction = torch.randn(adjoint.shape[-1], generator=torch.Generator().manual_seed(0)).to(adjoint)
    numbers = torch.arange(adjoint.shape[1], device=adjoint.device)

    def moved(tokens: Tensor) -> Tensor:
        along = (tokens.to(adjoint)[:, None] * direction).expand_as(adjoint)
        (found,) = torch.autograd.grad(adjoint, cotangent, along, retain_graph=True)
        return found[0].detach()

    try:
        every = moved(torch.ones_like(numbers))
    except RuntimeError as error:
        if "not implemented" not in str(error):
            raise
        return None  # fused attention after the blocks has no second derivative, and mixes tokens
    token = torch.zeros_like(every, dtype=torch.long)
    apart = every == 0
    for bit in range(max(1, (len(numbers) - 1).bit_length())):
        share = (moved((numbers >> bit) & 1) / every).masked_fill(apart, 0)
        if not bool((torch.minimum(share.abs(), (share - 1).abs()) < UNSURE).all()):
            return None
        token |= share.round().long() << bit
    return token.masked_fill(apart, _NONE).cpu()
