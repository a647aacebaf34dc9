"""A batch of samples on its way through a cached run: what is known of it, and how it goes on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.lanes import Schedule
from cachesmith.calibrate.closed_loop.loop import Loop, Note, Past, Weights, attached
from cachesmith.calibrate.closed_loop.replay import Results, Trace, replayed
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request


@dataclass
class Uncached:
    """Samples that are called together: their uncached path [N, steps + 1, ...] in float32, and pictures [N, C, H, W].

    `prompts` remembers what they were encoded to.
    """

    requests: Sequence[Request]
    path: Tensor
    images: Tensor
    prompts: dict[str, Any] = field(default_factory=dict)

    def parts(self, size: int) -> "list[Uncached]":
        """The same in calls of at most `size` samples."""
        if len(self.requests) <= size:
            return [self]
        places = [slice(i, i + size) for i in range(0, len(self.requests), size)]
        return [Uncached(self.requests[p], self.path[p], self.images[p]) for p in places]


class Batch:
    """One batch's cached run on a schedule, up to some step."""

    def __init__(self, renderer: Renderer, uncached: Uncached, schedule: Schedule, folds: Tensor):
        self.renderer, self.uncached, self.schedule, self.folds = renderer, uncached, schedule, folds
        self.known: Results = []
        self.past = Past()

    def compute(self, step: int, weights: Weights) -> None:
        """Compute step `step`, in full or by half. What is forecast of it by `weights` is not kept."""
        trace = self._replay(step + 1, weights)
        if self.schedule.mask[step] == "C":
            self.known = trace.results

    def walk(self, stop: int, weights: Weights) -> tuple[Tensor, Results]:
        """Go on to step `stop` by `weights`: the latents that enter it, and what the transformer returned."""
        trace = self._replay(stop, weights)
        return trace.latents[-1], trace.results

    def differentiable(self, stop: int, weights: Weights) -> tuple[Tensor, list[Note]]:
        """As `walk`: the latents, and the forecasts that they were made from, with a graph between them."""
        notes: list[Note] = []
        loop = Loop(self.schedule.mask, weights, self.past, self.folds, notes)
        with self._watched(loop, stop) as trace:
            self.renderer.differentiable(self.uncached.requests)
        return trace.latents[-1], notes

    def pictures(self) -> Tensor:
        """Decode a run that is known to its end: images [N, C, H, W]."""
        with replayed(self.renderer.pipe, len(self.folds), self.known, None, self.uncached.prompts):
            return self.renderer(self.uncached.requests).images

    def _replay(self, stop: int, weights: Weights) -> Trace:
        with self._watched(Loop(self.schedule.mask, weights, self.past, self.folds), stop) as trace:
            self.renderer(self.uncached.requests)
        return trace

    @contextmanager
    def _watched(self, loop: Loop, stop: int) -> Iterator[Trace]:
        pipe, prompts = self.renderer.pipe, self.uncached.prompts
        with (
            attached(pipe, self.schedule, loop),
            replayed(pipe, len(self.folds), self.known, stop, prompts) as trace,
        ):
            yield trace


@torch.no_grad()
def sample(renderer: Renderer, requests: Sequence[Request]) -> Uncached:
    """Sample one batch uncached. Raises `CachesmithError` where the model's own pictures are not finite."""
    prompts: dict[str, Any] = {}
    with replayed(renderer.pipe, len(requests), [], None, prompts) as trace:
        pictures = renderer(requests)
    renderer.check_finite(pictures)
    return Uncached(requests, torch.stack(trace.latents, 1).float().cpu(), pictures.images, prompts)
