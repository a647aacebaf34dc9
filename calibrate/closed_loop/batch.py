"""A batch of samples on its way through a cached run: what is known of it, and how it goes on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.lanes import Schedule
from cachesmith.calibrate.closed_loop.loop import Loop, Note, Past, StepWeights, attached
from cachesmith.calibrate.closed_loop.replay import ReplayTrace, Results, part_of, replayed
from cachesmith.calibrate.objective import Objective
from cachesmith.sampling.pictures import Pictures
from cachesmith.sampling.render import Renderer, device_of
from cachesmith.sampling.requests import Request

_AT_ONCE = 1 << 14
"""Latents of every point that are held in float64."""


@dataclass
class Uncached:
    """Samples that are called together: their uncached path [N, steps + 1, ...], and pictures [N, C, H, W].

    Both are on the host, in the dtype that the pipeline has them in. `prompts` remembers what they were encoded to.
    """

    requests: Sequence[Request]
    path: Tensor
    images: Tensor
    prompts: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.requests)

    def moves(self, scales: Tensor) -> Tensor:
        """Inner products of y_{s+1} - y_s, y_s = scales_s x_s, of each sample's path: [N, steps, steps], float64.

        scales: [steps + 1].
        """
        count, points = self.path.shape[:2]
        total = torch.zeros(count, points - 1, points - 1, dtype=torch.float64)
        for some in torch.split(self.path.flatten(2), _AT_ONCE, 2):
            steps = (some.double() * scales[:, None]).diff(dim=1)
            total += steps @ steps.mT
        return total

    def parts(self, size: int) -> "list[Uncached]":
        """The same in calls of at most `size` samples."""
        if len(self.requests) <= size:
            return [self]
        rows = range(len(self.requests))
        return [self.some(rows[i : i + size]) for i in range(0, len(rows), size)]

    def some(self, rows: Sequence[int]) -> "Uncached":
        """Some of the samples; what their prompts were encoded to is not known."""
        return Uncached([self.requests[row] for row in rows], self.path[[*rows]], self.images[[*rows]])


class Batch:
    """One batch's cached run on a schedule, up to some step. What is remembered of it rests on `home`.

    known: what the transformer returned so far; last: the same after the last walk of a segment.
    """

    def __init__(
        self,
        renderer: Renderer,
        uncached: Uncached,
        schedule: Schedule,
        folds: Tensor,
        home: torch.device | None = None,
    ):
        self.renderer, self.uncached, self.schedule, self.folds = renderer, uncached, schedule, folds
        self.device = device_of(renderer.pipe)
        self.home = home or self.device
        self.known: Results = []
        self.last: Results = []
        self.past = Past()

    def __len__(self) -> int:
        return len(self.folds)

    def parts(self, size: int) -> "list[Batch]":
        """The same as batches of at most `size` samples, each as far as this one is."""
        samples = len(self.folds)
        if samples <= size:
            return [self]
        made = []
        for number, part in enumerate(self.uncached.parts(size)):
            places = torch.arange(number * size, number * size + len(part.requests))
            each = Batch(self.renderer, part, self.schedule, self.folds[places], self.home)
            each.known, each.last = (part_of(results, places, samples) for results in (self.known, self.last))
            each.past = self.past.part(places, samples)
            made.append(each)
        return made

    def compute(self, step: int, weights: StepWeights) -> None:
        """Compute step `step`, in full or by half. What is forecast of it by `weights` is not kept."""
        past = self.past.on(self.device)
        trace = self._replay(step + 1, weights, past)
        self.past = past.on(self.home)
        if self.schedule.mask[step] == "C":
            self.known = trace.results

    def walk(self, stop: int, weights: StepWeights) -> tuple[Tensor, Results]:
        """Go on to step `stop` by `weights`: the latents that enter it, and what the transformer returned."""
        trace = self._replay(stop, weights, self.past.on(self.device))
        return trace.latents[-1], trace.results

    def differentiable(self, stop: int, weights: StepWeights) -> tuple[Tensor, list[Note]]:
        """As `walk`: the latents, and the forecasts that they were made from, with a graph between them."""
        notes: list[Note] = []
        loop = Loop(self.schedule.mask, weights, self.past.on(self.device), self.folds, notes)
        with self._watched(loop, stop) as trace:
            self.renderer.differentiable(self.uncached.requests)
        return trace.latents[-1], notes

    def pictures(self) -> Pictures:
        """Decode a run that is known to its end; the latents are those that the sampler ends with."""
        with replayed(self.renderer.pipe, len(self.folds), self.known, None, self.uncached.prompts) as trace:
            drawn = self.renderer(self.uncached.requests)
        return replace(drawn, latent_samples=trace.latents[-1].float().cpu())

    def score(self, objective: Objective) -> Tensor:
        """Score such a run against the uncached samples, [N]."""
        drawn = self.pictures()
        images, latents = (each.float() for each in (self.uncached.images, self.uncached.path[:, -1]))
        return objective.scores(Pictures(images, latents, drawn.media), drawn)

    def _replay(self, stop: int, weights: StepWeights, past: Past) -> ReplayTrace:
        with self._watched(Loop(self.schedule.mask, weights, past, self.folds), stop) as trace:
            self.renderer(self.uncached.requests)
        return trace

    @contextmanager
    def _watched(self, loop: Loop, stop: int) -> Iterator[ReplayTrace]:
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
    path = torch.stack(trace.latents, 1).cpu()
    return Uncached(requests, path, _narrowed(pictures.images, path.dtype), prompts)


def _narrowed(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Pictures in the pipeline's dtype, if that is what they were drawn in: nothing is lost."""
    narrow = images.to(dtype)
    return narrow if torch.equal(narrow.to(images.dtype), images) else images
