"""Fit a schedule's weight rows by gradient through the closed loop.

A cached sampling run is differentiable and cheap to differentiate: only the computed steps hold activations, and every
forecast is linear in its weights. Adam on the rows alone, in the axes of `Moments`, minimises the log error of the
final picture and of the path to it against the uncached ones, so the rows learn to correct the errors that accumulate
along the run; fitting each forecast by itself to recorded outputs does not. Every channel has weights of its own:
channels move at different rates (HyCa's observation, arXiv 2510.04188), and a sum weighted per channel costs no more
than one weighted as a whole.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cachesmith.calibrate.tune.checkpoint import Checkpoint
from cachesmith.calibrate.tune.preconditioner import PILOTS, Moments, balanced, rows_at
from cachesmith.calibrate.tune.rows import Rows
from cachesmith.policies import GUIDANCE, Stack, halves
from cachesmith.runtime import BlockRun, Feature, Tick, Unit, UnitCall, UnitResult, resolve_units, watch
from cachesmith.runtime.guidance import guided
from cachesmith.runtime.hooks.runner import COMPUTE_ALL, Answer, UseOutput
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request

FLOOR = 1e-8
"""Squared error below which a picture counts as equal."""

PATH = 0.85
"""The path's part of the loss; the rest is the picture's."""


class Batch(NamedTuple):
    """Requests, with their uncached images [N, C, H, W] and paths [N, waypoints, ...]."""

    requests: Sequence[Request]
    images: Tensor
    path: Tensor


class Trainer:
    """A runner that forecasts the stack, and a follower's difference from it, with rows that carry gradients.

    Sums `moments` of what they multiply.
    """

    def __init__(self, mask: str, trained: Rows, moments: Moments | None = None):
        self.rows, self.moments = trained, moments
        self._leading, self._following = halves(mask)
        self._tick = Tick(0, None, "")
        self._past: dict[tuple[str, str], list[tuple[Feature, Feature]]] = {}

    def begin(self, tick: Tick) -> None:
        """A transformer call; a new run starts clean."""
        if tick.run != self._tick.run:
            self._past.clear()
        self._tick = tick

    def answer(self, call: UnitCall) -> Answer:
        """sum_j w_j F_j + sum_j u_j I_j + u I per channel (+ I, for blocks), except on computed steps."""
        step = self._tick.step
        if step is None or self.computes(call.unit, call.inputs):
            return COMPUTE_ALL
        streams = enumerate(call.inputs)
        return UseOutput(tuple(self._stream(call.unit, stream, step, now) for stream, now in streams))

    def computes(self, unit: Unit, inputs: Feature) -> bool:
        """Whether the schedule has `unit` computed."""
        letters = self._following if unit.group == GUIDANCE else self._leading
        return self._tick.step is None or letters[self._tick.step] == "C"

    def _stream(self, unit: Unit, stream: int, step: int, now: Tensor) -> Tensor:
        lane = unit.lane + stream
        weights, of_inputs = self.rows.outputs[lane, step], self.rows.inputs[lane, step]
        past = [(entered[stream], made[stream]) for entered, made in self._past[self._tick.branch, unit.name]]
        if self.moments is not None:
            self.moments.add(lane, step, past, now)
        total = now * (of_inputs[-1] + isinstance(unit, BlockRun))
        for tap, (entered, made) in enumerate(past):
            total = torch.addcmul(total, weights[tap], made)
            total = torch.addcmul(total, of_inputs[tap], entered)
        return total.to(now.dtype)

    def observe(self, result: UnitResult) -> None:
        """Remember a computed step, as many as there are taps."""
        if self._tick.step is None:
            return
        past = self._past.setdefault((self._tick.branch, result.unit.name), [])
        past.insert(0, (result.inputs, result.feature))
        del past[self.rows.outputs.shape[2] :]

    def end(self, output: Tensor) -> bool:
        """The call is over."""
        return False


def attached(pipe: Any, trainer: Trainer) -> AbstractContextManager[None]:
    """Attach a trainer to a pipeline; where one branch of guidance follows, it is shown the branches."""
    units = Stack(follower=trainer.rows.follower)
    runner = guided(trainer, resolve_units(pipe.transformer, units), trainer.computes)
    return watch(pipe, units, runner)


def tune(
    renderer: Renderer,
    batches: Sequence[Batch],
    mask: str,
    start: Rows,
    learning_rate: float,
    advance: Callable[[float], None],
    unfinished: Path,
) -> Rows:
    """Take one Adam step, in the axes of `Moments`, per batch and return the rows.

    `advance(error)` is called after every step, with the mean log squared error of the pictures. An interrupted call
    leaves its state in the file `unfinished`, and the same call takes it up in the same axes. The model's own
    parameters are left alone.
    """
    if not batches:
        return start
    transformer = renderer.pipe.transformer
    start = Rows(start.outputs.to(transformer.device), start.inputs.to(transformer.device), start.follower)
    # those of an unfinished call follow from its file
    axes = Moments(start).axes() if unfinished.exists() else _axes(renderer, batches, mask, start)
    coordinates = torch.zeros_like(axes[..., 0]).mT.contiguous().requires_grad_()
    optimizer = torch.optim.Adam([coordinates], lr=learning_rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches), learning_rate * 0.05)
    with _frozen(transformer), Checkpoint(unfinished, [coordinates, axes], optimizer, schedule) as checkpoint:
        for known in checkpoint.losses:
            advance(known)
        for batch in batches[len(checkpoint.losses) :]:
            loss, error = _loss(renderer, batch, mask, rows_at(start, axes, coordinates))
            (coordinates.grad,) = torch.autograd.grad(loss, coordinates)
            torch.nn.utils.clip_grad_norm_(coordinates, 1.0)
            optimizer.step()
            schedule.step()
            checkpoint.add(error)
            advance(error)
    return rows_at(start, axes, coordinates.detach())


def _axes(renderer: Renderer, batches: Sequence[Batch], mask: str, start: Rows) -> Tensor:
    moments = Moments(start)
    with torch.no_grad(), attached(renderer.pipe, Trainer(mask, start, moments)):
        renderer(batches[0].requests)
    axes = moments.axes()
    origin = torch.zeros_like(axes[..., 0]).mT.contiguous().requires_grad_()
    with _frozen(renderer.pipe.transformer):
        losses = (_loss(renderer, batch, mask, rows_at(start, axes, origin))[0] for batch in batches[:PILOTS])
        return balanced(axes, [torch.autograd.grad(loss, origin)[0] for loss in losses])


@contextmanager
def _frozen(transformer: nn.Module) -> Iterator[None]:
    """Compute no gradients of the model's own parameters."""
    trainable = [p for p in transformer.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _loss(renderer: Renderer, batch: Batch, mask: str, trained: Rows) -> tuple[Tensor, float]:
    """What is minimised, and the pictures' part of it as a number."""
    with attached(renderer.pipe, Trainer(mask, trained)):
        images, path = renderer.differentiable(batch.requests)
    picture = _log_error(images.flatten(1), batch.images.flatten(1))
    on_the_way = _log_error(path.flatten(2), batch.path.flatten(2))
    return (1 - PATH) * picture + PATH * on_the_way, picture.item()


def _log_error(made: Tensor, uncached: Tensor) -> Tensor:
    """Mean log of the mean squared error over the last dimension."""
    error = (made - uncached).square().mean(-1)
    return (error + FLOOR).log().mean()
