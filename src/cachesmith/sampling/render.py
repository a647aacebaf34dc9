"""Sample a pipeline on a list of requests: every sample with a noise of its own, so that batching changes nothing."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cachesmith.runtime.hooks.patch import patched
from cachesmith.sampling.requests import Request
from cachesmith.sampling.waypoints import follow, joined, waypoints

PER_SAMPLE = ("prompt", "prompt_2", "prompt_3", "negative_prompt", "class_labels", "prompt_embeds")
"""Pipeline arguments that are given as lists, one entry a sample."""


class Pictures(NamedTuple):
    """images: [N, C, H, W], float32 in [0, 1]; latents: what the decoder was given, [N, ...], float32."""

    images: Tensor
    latents: Tensor


class Renderer:
    """Calls `pipe` on requests in batches of at most `batch`; `common` are arguments for every call."""

    def __init__(self, pipe: Any, steps: int, batch: int = 32, **common: Any):
        self.pipe, self.steps, self.batch, self.common = pipe, steps, batch, common

    def __call__(self, requests: Sequence[Request], advance: Callable[[int], None] | None = None) -> Pictures:
        """Sample all `requests`; `advance(n)` is called after every n finished samples."""
        return _whole([self._call(chunk) for chunk in self._chunks(requests, advance)])

    def walk(
        self, requests: Sequence[Request], advance: Callable[[int], None] | None = None
    ) -> tuple[Pictures, Tensor]:
        """Sample all `requests`; return their paths as well, [N, waypoints, ...], float32, see `path`."""
        runs = [self._followed(chunk) for chunk in self._chunks(requests, advance)]
        return _whole([pictures for pictures, _ in runs]), torch.cat([path for _, path in runs])

    def differentiable(self, requests: Sequence[Request]) -> tuple[Tensor, Tensor]:
        """Sample one batch with gradients enabled; return its images [N, C, H, W] and its path.

        diffusers wraps every pipeline's `__call__` in `torch.no_grad`; this goes around the wrapper.
        """
        plain: Any = inspect.unwrap(type(self.pipe).__call__)
        with torch.enable_grad(), follow(self.pipe.scheduler, waypoints(self.steps)) as seen:
            images = self._images(plain(self.pipe, **self._arguments(requests)))
            return images, joined(seen, len(requests))

    def _chunks(
        self, requests: Sequence[Request], advance: Callable[[int], None] | None
    ) -> Iterator[list[Request]]:
        for chunk in _batches(requests, self.batch):
            yield chunk
            if advance is not None:
                advance(len(chunk))

    def _followed(self, chunk: Sequence[Request]) -> tuple[Pictures, Tensor]:
        with follow(self.pipe.scheduler, waypoints(self.steps)) as seen:
            pictures = self._call(chunk)
        return pictures, joined(seen, len(chunk))

    def _call(self, chunk: Sequence[Request]) -> Pictures:
        with _decoder_input(self.pipe) as latents:
            result = self.pipe(**self._arguments(chunk))
        return Pictures(self._images(result), torch.cat(latents).float().cpu())

    def _arguments(self, chunk: Sequence[Request]) -> dict[str, Any]:
        shared = {k: v for k, v in chunk[0].arguments.items() if k not in PER_SAMPLE}
        listed = {k: [r.arguments[k] for r in chunk] for k in chunk[0].arguments if k in PER_SAMPLE}
        generators = [torch.Generator().manual_seed(r.seed) for r in chunk]
        options: dict[str, Any] = {
            "generator": generators,
            "num_inference_steps": self.steps,
            "output_type": "pt",
        }
        return {**options, **self.common, **shared, **listed}

    @staticmethod
    def _images(result: Any) -> Tensor:
        images: Tensor = result.images if hasattr(result, "images") else result.frames
        return images.float().cpu()


def _whole(parts: Sequence[Pictures]) -> Pictures:
    return Pictures(torch.cat([p.images for p in parts]), torch.cat([p.latents for p in parts]))


def _batches(requests: Sequence[Request], size: int) -> Iterator[list[Request]]:
    """Cut into runs that share every argument which is not per sample."""

    def key(request: Request) -> list[tuple[str, str]]:
        names = sorted(request.arguments)
        return [(k, "" if k in PER_SAMPLE else repr(request.arguments[k])) for k in names]

    for _, group in groupby(requests, key):
        run = list(group)
        yield from (run[i : i + size] for i in range(0, len(run), size))


@contextmanager
def _decoder_input(pipe: Any) -> Iterator[list[Tensor]]:
    """Collect what the pipeline hands to its decoder."""
    seen: list[Tensor] = []
    decode = pipe.vae.decode

    def spy(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(z.detach().clone())
        return decode(z, *args, **kwargs)

    with patched(pipe.vae, "decode", spy):
        yield seen
