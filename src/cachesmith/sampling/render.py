"""Sample a pipeline on a list of requests: every sample with a noise of its own, so that batching changes nothing."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cachesmith.policies import CachesmithError
from cachesmith.progress import Advance
from cachesmith.runtime.hooks.patch import patched
from cachesmith.sampling.encode import encoded_without_gradients
from cachesmith.sampling.loop import SamplingLoop, blocks_with_gradients
from cachesmith.sampling.pictures import Pictures, joined_pictures, pictures_of
from cachesmith.sampling.requests import Request, arguments_of, as_declared, batches, check_requests
from cachesmith.sampling.requests.batches import check_count
from cachesmith.sampling.waypoints import follow, joined_path


class Renderer:
    """Calls `pipe`, or a `SamplingLoop`, on requests in batches of at most `batch`.

    common: arguments for every call. Requests may differ in size and in any argument; their samples come back in their
    order. With `output_type="latent"` nothing is decoded. Every method raises `CachesmithError` before the first sample
    where the pipeline does not take what a request gives.
    """

    def __init__(self, pipe: Any, steps: int, batch: int = 32, **common: Any):
        self.pipe, self.steps, self.batch, self.common = pipe, steps, batch, common

    def __call__(self, requests: Sequence[Request], advance: Advance | None = None) -> Pictures:
        """Sample all `requests`; `advance(n)` is called after every n finished samples."""
        return self._all(requests, self._call, advance)

    def reference(self, requests: Sequence[Request], advance: Advance | None = None) -> Pictures:
        """Sample all `requests` uncached, with their paths, see `waypoints`.

        Raises `CachesmithError` after the first batch whose samples are not finite: nothing can be compared with them.
        """
        return self._all(requests, self._checked, advance)

    def walk(self, requests: Sequence[Request], advance: Advance | None = None) -> tuple[Pictures, Tensor]:
        """Return `reference` and its paths, [N, waypoints, ...], where all samples are of one size."""
        pictures = self.reference(requests, advance)
        return pictures, pictures.path

    def differentiable(self, requests: Sequence[Request]) -> tuple[Tensor, Tensor]:
        """Sample one batch with gradients enabled; return its images [N, C, H, W] and its path.

        diffusers wraps every pipeline's `__call__` in `torch.no_grad`; this goes around the wrapper. Prompts are
        encoded without gradients. Raises `CachesmithError` where one call cannot sample all `requests`.
        """
        if len(groups := batches(requests, len(requests))) != 1:
            raise CachesmithError(f"{len(requests)} requests need {len(groups)} calls; see requests.batches")
        with (
            torch.enable_grad(),
            encoded_without_gradients(self.pipe),
            blocks_with_gradients(self.pipe),
            follow(self.pipe.scheduler) as seen,
            _seeded(requests[0].seed, device_of(self.pipe)),
        ):
            result = _with_gradients(self.pipe)(**self._arguments(requests))
            pictures = pictures_of(result, (), self._output_type(requests[0]), None)
            return pictures.images, joined_path(seen, len(requests))

    def check_finite(self, pictures: Pictures) -> None:
        """Raise `CachesmithError`, with dtype and remedy, where uncached samples are not finite."""
        if what := pictures.not_finite():
            raise CachesmithError(_not_finite(what, self.pipe))

    def size(self, request: Request) -> tuple[int, int] | None:
        """Return height and width in pixels of what a request draws, as far as they are known before."""
        given = {**self.common, **request.arguments}
        height, width = given.get("height"), given.get("width")
        if isinstance(height, int) and isinstance(width, int):
            return height, width
        side, vae = self.pipe.transformer.config.get("sample_size"), getattr(self.pipe, "vae", None)
        channels = None if vae is None else vae.config.get("block_out_channels")
        if "class_labels" not in given or not isinstance(side, int) or channels is None:
            return None
        return (side * 2 ** (len(channels) - 1),) * 2

    def _all(
        self,
        requests: Sequence[Request],
        call: Callable[[Sequence[Request]], Pictures],
        advance: Advance | None,
    ) -> Pictures:
        check_requests(self.pipe, requests, self.common, self.steps)
        parts: list[Pictures] = []
        order: list[int] = []
        for places in batches(requests, self.batch):
            parts.append(call([requests[place] for place in places]))
            order += places
            if advance is not None:
                advance(len(places))
        return joined_pictures(parts, order)

    def _checked(self, chunk: Sequence[Request]) -> Pictures:
        with follow(self.pipe.scheduler) as seen:
            pictures = self._call(chunk, seen)
        self.check_finite(pictures)
        return pictures

    def _call(self, chunk: Sequence[Request], seen: list[Tensor] | None = None) -> Pictures:
        with _decoder_input(self.pipe) as latents, _seeded(chunk[0].seed, device_of(self.pipe)):
            result = self.pipe(**self._arguments(chunk))
        path = None if seen is None else joined_path(seen, len(chunk))
        pictures = pictures_of(result, latents, self._output_type(chunk[0]), path)
        check_count(len(pictures), chunk)
        self._compare_size(pictures, chunk[0])
        return pictures

    def _compare_size(self, pictures: Pictures, request: Request) -> None:
        """Warn where a pipeline rounds the size that it is asked for."""
        given = {**self.common, **request.arguments}
        other = {name: n for name, n in pictures.size.items() if given.get(name) not in (None, n)}
        if other:
            asked, drawn = (
                ", ".join(f"{name} {size[name]}" for name in other) for size in (given, pictures.size)
            )
            warnings.warn(
                f"{type(self.pipe).__name__} draws {drawn} where it is asked for {asked}; ask for what is drawn",
                RuntimeWarning,
                stacklevel=2,
            )

    def _output_type(self, request: Request) -> str:
        return str({"output_type": "pt", **self.common, **request.arguments}["output_type"])

    def _arguments(self, chunk: Sequence[Request]) -> dict[str, Any]:
        generators = [torch.Generator().manual_seed(request.seed) for request in chunk]
        loop = isinstance(self.pipe, SamplingLoop)
        options: dict[str, Any] = {
            # some pipelines take no list, even of one
            "generator": generators if loop or len(chunk) > 1 else generators[0],
            "num_inference_steps": self.steps,
            "output_type": "pt",
        }
        if loop:
            options = {
                name: value for name, value in options.items() if name in _parameters(self.pipe.sample)
            }
        return {**options, **as_taken(self.pipe, {**self.common, **arguments_of(chunk)})}


def as_taken(pipe: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call's arguments as `pipe` takes them: tuples where it takes tuples alone, tensors where it computes.

    Embeddings are given in the dtype of its denoiser.
    """
    device, dtype = device_of(pipe), pipe.transformer.dtype
    # weights that are stored in 8 bits are not computed in them
    computes = dtype.is_floating_point and dtype.itemsize > 1

    def placed(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        embeds = name.endswith("embeds") and value.is_floating_point()
        return value.to(device, dtype if embeds and computes else None)

    return {name: placed(name, value) for name, value in as_declared(pipe, given).items()}


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Fix what a pipeline draws without a generator, as where it encodes a picture, and put the state back."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def device_of(pipe: Any) -> torch.device:
    """Return where a pipeline computes, wherever its weights are kept between calls."""
    found = getattr(pipe, "_execution_device", None)
    device: torch.device = pipe.device if found is None else found
    return device


def _parameters(function: Callable[..., Any]) -> Sequence[str]:
    return list(inspect.signature(function).parameters)


def _with_gradients(pipe: Any) -> Callable[..., Any]:
    if isinstance(pipe, SamplingLoop):
        plain: Any = inspect.unwrap(pipe.sample)
        return SamplingLoop(pipe.transformer, pipe.scheduler, plain)
    wrapped: Any = inspect.unwrap(type(pipe).__call__)
    return lambda **arguments: wrapped(pipe, **arguments)


def _not_finite(what: str, pipe: Any) -> str:
    dtype = str(pipe.transformer.dtype).removeprefix("torch.")
    part = "the decoder gives pictures" if what == "pictures" else "the model gives latents"
    remedy = "check its weights" if dtype == "float32" else "load it in float32 or bfloat16 (--dtype)"
    return f"{part} that are not finite (NaN or infinite) in {dtype} without any caching; {remedy}"


@contextmanager
def _decoder_input(pipe: Any) -> Iterator[list[Tensor]]:
    """Collect what the pipeline hands to its decoder, if it has one."""
    seen: list[Tensor] = []
    vae = getattr(pipe, "vae", None)
    decode = getattr(vae, "decode", None)
    if decode is None:
        yield seen
        return

    def spy(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(z.detach().clone())
        return decode(z, *args, **kwargs)

    with patched(vae, "decode", spy):
        yield seen
