"""Tiny pipelines as calibration sees them: renderer and uncached samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tests.tiny import sample_flux, tiny_dit, tiny_flux
from torch import Tensor

from cachesmith.calibrate.closed_loop.axes import Segment
from cachesmith.calibrate.closed_loop.batch import Batch, Uncached, sample
from cachesmith.calibrate.closed_loop.lanes import Schedule, corrected, line_weights
from cachesmith.calibrate.fleet.groups import Group, shared_out
from cachesmith.calibrate.fleet.shard import Shard
from cachesmith.calibrate.fleet.shards import InProcess, Shards
from cachesmith.sampling.pictures import Pictures
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request, requests

STEPS = 10
LABELS: list[Any] = [{"class_labels": label} for label in range(5)]


class Flux(Renderer):
    """Calls FLUX with embeddings, one for all samples; with `scale` above 1 guided by calls of their own."""

    def __init__(self, scale: float = 1.0):
        super().__init__(tiny_flux(), STEPS, 8)
        self.scale = scale

    def __call__(self, requests: Sequence[Request], advance: Any = None) -> Pictures:
        images = sample_flux(self.pipe, requests[0].seed, STEPS, len(requests), true_cfg_scale=self.scale)
        return Pictures(torch.from_numpy(images), torch.zeros(len(requests), 1))

    def differentiable(self, requests: Sequence[Request]) -> tuple[Tensor, Tensor]:
        import inspect

        plain = inspect.unwrap(type(self.pipe).__call__)
        embeds = {"prompt_embeds": (1, 3, 32), "pooled_prompt_embeds": (1, 32)}
        text = torch.Generator().manual_seed(100)
        given = {n: torch.randn(*shape, generator=text) for n, shape in embeds.items()}
        given = {n: v.repeat(len(requests), *(1,) * (v.ndim - 1)) for n, v in given.items()}
        if self.scale > 1:
            given |= {f"negative_{n}": -v for n, v in given.items()}
        generator = [torch.Generator().manual_seed(requests[0].seed + i) for i in range(len(requests))]
        with torch.enable_grad():
            plain(
                self.pipe, **given, num_inference_steps=STEPS, height=16, width=16, generator=generator,
                output_type="pt", true_cfg_scale=self.scale,
            )  # fmt: skip
        raise AssertionError("the replay stops before the decoder")


def dit(scale: float = 1.5) -> Renderer:
    return Renderer(tiny_dit(), STEPS, 8, guidance_scale=scale)


def uncached(
    renderer: Renderer, batches: int = 2, size: int = 3, asked: Sequence[Any] = LABELS
) -> list[Uncached]:
    for part in renderer.pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    wanted = requests(asked, batches * size, 7)
    return [sample(renderer, wanted[i * size : (i + 1) * size]) for i in range(batches)]


def prepared(
    renderer: Renderer, schedule: Schedule, start: int, channels: int, asked: Sequence[Any] = LABELS
) -> Batch:
    """Three samples, two of them in fold 0, about to go on from step `start`. channels: of all streams."""
    batch = Batch(renderer, uncached(renderer, 1, 3, asked)[0], schedule, torch.tensor([0, 1, 0]))
    base = line_weights(schedule, channels, torch.device("cpu"))
    for step in range(start):
        if schedule.mask[step] != "F":
            batch.compute(step, base)
        batch.known = batch.walk(step + 1, base)[1]
    batch.compute(start, base)
    return batch


def shards(
    renderer: Renderer, batches: int = 2, size: int = 3, workers: int = 1, asked: Sequence[Any] = LABELS
) -> Shards:
    """Uncached samples in this process, shared out among so many workers."""
    samples = uncached(renderer, batches, size, asked)
    groups = [
        Group(tuple(range(i * size, (i + 1) * size)), tuple(each.requests)) for i, each in enumerate(samples)
    ]
    members = []
    for held in shared_out(groups, workers):
        shard = Shard(renderer, held, Path("nowhere"))
        for place, group in held.items():
            rows = [groups[place].numbers.index(number) for number in group.numbers]
            whole = samples[place]
            shard.samples[place] = Uncached(group.requests, whole.path[rows], whole.images[rows])
        members.append(InProcess(shard))
    return Shards(groups, members, torch.device("cpu"))


def moved(batch: Batch, segment: Segment, theta: Tensor, directions: list[Tensor]) -> list[Tensor]:
    """How latents move [N, M] as theta [folds, ...] does along each direction, by autograd on theta itself."""
    base = line_weights(batch.schedule, theta.shape[-1], torch.device("cpu"))
    theta = theta.clone().requires_grad_()
    end, _ = batch.differentiable(segment.stop, corrected(batch.schedule, segment, base, theta))
    cotangent = torch.zeros_like(end, requires_grad=True)
    (adjoint,) = torch.autograd.grad(end, theta, cotangent, create_graph=True)
    return [
        torch.autograd.grad(adjoint, cotangent, along.expand_as(theta), retain_graph=True)[0].flatten(1)
        for along in directions
    ]
