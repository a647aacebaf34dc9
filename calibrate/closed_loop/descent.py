"""How far every sample's cached run is off at the ends of its segments, and the gradient of that in their weights."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.axes import Segment
from cachesmith.calibrate.closed_loop.batch import Uncached
from cachesmith.calibrate.closed_loop.gradient_checkpointing import recomputed
from cachesmith.calibrate.closed_loop.lanes import Rows, Schedule, corrected
from cachesmith.calibrate.closed_loop.loop import Loop, Past, attached
from cachesmith.calibrate.closed_loop.replay import replayed
from cachesmith.runtime.models.denoisers import denoisers
from cachesmith.sampling.out_of_memory import in_memory
from cachesmith.sampling.render import Renderer, device_of

LAST = 0.6
"""The last latents' part of the loss; the ends of the other segments share the rest."""

FLOOR = 1e-8
"""Squared error below which latents count as equal."""


@dataclass(frozen=True)
class Point:
    """Where gradients are taken: weights `rows`, and what `thetas` [lanes, AXES, channels] add on their segments.

    recomputed: blocks keep their inputs alone, and are computed again for their gradients.
    """

    schedule: Schedule
    segments: tuple[Segment, ...]
    rows: Rows
    thetas: tuple[Tensor, ...]
    recomputed: bool = False


def loss(ends: Tensor) -> Tensor:
    """Of log squared errors at the ends of segments [segments, N]: each sample's, [N]."""
    return ends[0] if len(ends) == 1 else (1 - LAST) * ends[:-1].mean(0) + LAST * ends[-1]


def gradients(
    renderer: Renderer, samples: Sequence[Uncached], point: Point, graph_on_host: bool = False
) -> tuple[list[Tensor], Tensor, list[Uncached]]:
    """Each sample's gradient of its loss in each theta, [N, unknowns] a segment, and its log errors [segments, N].

    The last are the samples as they were called: half as many at a time where memory ran out. graph_on_host: of blocks
    that are computed again.
    """
    blocks = denoisers(renderer.pipe).values()
    with recomputed(*blocks, on_host=graph_on_host) if point.recomputed else nullcontext():
        called, each = in_memory(samples, lambda batch: _of_batch(renderer, batch, point))
    grads = [torch.cat(parts) for parts in zip(*(grads for grads, _ in each), strict=True)]
    return grads, torch.cat([ends for _, ends in each], 1), called


def _of_batch(renderer: Renderer, batch: Uncached, point: Point) -> tuple[list[Tensor], Tensor]:
    samples, device = len(batch.requests), device_of(renderer.pipe)
    # every sample has weights of its own, so that one backward pass gives each one's gradient
    thetas = [
        theta.to(device).expand(samples, *theta.shape).clone().requires_grad_() for theta in point.thetas
    ]
    rows: Rows = {step: row.to(device) for step, row in point.rows.items()}
    for segment, theta in zip(point.segments, thetas, strict=True):
        rows |= corrected(point.schedule, segment, rows, theta)
    ends = _ends(renderer, batch, point, rows)
    loss(ends).sum().backward()  # type: ignore[no-untyped-call]
    return [theta.grad.flatten(1) for theta in thetas], ends.detach()  # type: ignore[union-attr]


def _ends(renderer: Renderer, batch: Uncached, point: Point, rows: Rows) -> Tensor:
    """Log squared error at the end of every segment: [segments, N]."""
    loop = Loop(point.schedule.mask, rows, Past(), torch.arange(len(batch.requests)))
    replay = replayed(renderer.pipe, len(batch.requests), [], point.segments[-1].stop, batch.prompts)
    with attached(renderer.pipe, point.schedule, loop), replay as trace:
        renderer.differentiable(batch.requests)
    logs = []
    path = trace.latents
    for segment in point.segments:
        latents = path[segment.stop].float()
        miss = latents - batch.path[:, segment.stop].to(latents.device).float()
        logs.append((miss.square().flatten(1).mean(1) + FLOOR).log())
    return torch.stack(logs)
