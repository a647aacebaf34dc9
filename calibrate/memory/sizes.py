"""What one sample takes of memory in one step, found by running the denoiser once on the meta device."""

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.gradient_checkpointing import recomputed
from cachesmith.calibrate.memory.live_bytes import bytes_of, module_bytes
from cachesmith.calibrate.memory.on_meta import META, counted, to_meta, without_weights
from cachesmith.policies import PolicyError, Stack
from cachesmith.runtime.hooks.patch import patched
from cachesmith.runtime.models.units import block_lists, image_stream, resolve_units
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request


@dataclass(frozen=True)
class Kept:
    """Bytes of one step, of all its calls together, beyond their arguments.

    forward: at most, without gradients; graph: kept for a backward pass; backward: at most, while it is made of, beyond
    the graphs of the other steps.
    """

    forward: int
    graph: int
    backward: int


@dataclass(frozen=True)
class Sizes:
    """weights: bytes by component. rows: of the stream, in all calls of a step.

    Bytes of one sample: latents; result: what the transformer returns in a step; prompt: what it is given; feature: the
    image stream between blocks, in all calls of a step; computed, recomputed: a step with gradients, the latter with
    blocks computed twice; tail: what a step keeps beyond its blocks;
    decode: at most in the decoder; image: in float32.
    """

    weights: dict[str, int]
    latents: int
    result: int
    prompt: int
    feature: int
    computed: Kept
    recomputed: Kept
    tail: int
    decode: int
    image: int
    tokens: int
    channels: int
    rows: int

    @property
    def itemsize(self) -> int:
        """Bytes of an element of the stream."""
        return self.feature // (self.rows * self.tokens * self.channels)


@dataclass(frozen=True)
class _Calls:
    """Of one step: (args, kwargs) without contents; latents: what the sampler steps; decoded: for the decoder."""

    arguments: list[tuple[Any, Any]]
    latents: Tensor
    decoded: Tensor | None


class _Stop(BaseException):
    """Leaves the pipeline's call."""


class _Stepped(tuple[Tensor]):
    """What a scheduler's step returns."""

    @property
    def prev_sample(self) -> Tensor:
        """The next latents."""
        return self[0]


def sizes_of(renderer: Renderer, request: Request) -> Sizes:
    """Look at two steps of one sample. The pipeline may be on the meta device; else the steps are computed."""
    pipe = renderer.pipe
    calls = _calls(Renderer(pipe, 2, 1, **renderer.common), request)
    transformer = without_weights(pipe.transformer)
    stream = _stream(transformer, calls.arguments)
    forward = max(each.peak for each in stream)
    computed, kept = (_kept(transformer, calls.arguments, forward, again) for again in (False, True))
    inputs = len(block_lists(transformer)) * sum(each.streams for each in stream)
    parts = {n: c for n, c in pipe.components.items() if isinstance(c, torch.nn.Module)}
    decode, image = (
        (0, bytes_of(calls.latents)) if calls.decoded is None else _decode(pipe.vae, calls.decoded)
    )
    return Sizes(
        weights={name: module_bytes(part) for name, part in parts.items()},
        latents=bytes_of(calls.latents),
        result=sum(each.result for each in stream),
        prompt=sum(_bytes(each) for each in calls.arguments),
        feature=sum(each.feature for each in stream),
        computed=computed,
        recomputed=kept,
        tail=max(0, kept.graph - inputs),
        decode=decode,
        image=image,
        tokens=stream[0].tokens,
        channels=stream[0].channels,
        rows=sum(each.rows for each in stream),
    )


def _calls(renderer: Renderer, request: Request) -> _Calls:
    pipe, seen, steps = renderer.pipe, list[tuple[Any, Any]](), list[Tensor]()
    on_meta, decoded = pipe.transformer.device == META, list[Tensor]()
    scheduler, original, timesteps = pipe.scheduler, pipe.transformer.forward, pipe.scheduler.set_timesteps

    def forward(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = (to_meta(args), to_meta(kwargs)) if on_meta else (args, kwargs)
        if not steps:
            seen.append((to_meta(args), to_meta(kwargs)))
        return original(*args, **kwargs)

    def step(*args: Any, **kwargs: Any) -> Any:
        steps.append(kwargs["sample"] if "sample" in kwargs else args[2])
        return _Stepped((steps[-1],))

    def decode(z: Tensor, *_: Any, **__: Any) -> Any:
        decoded.append(z)
        raise _Stop

    @wraps(timesteps)
    def on_host(*args: Any, **kwargs: Any) -> Any:
        return timesteps(*args, **{**kwargs, **({"device": "cpu"} if on_meta else {})})

    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(patched(pipe.transformer, "forward", forward))
        stack.enter_context(patched(scheduler, "step", step))
        stack.enter_context(patched(scheduler, "set_timesteps", on_host))
        if getattr(pipe, "vae", None) is not None:
            stack.enter_context(patched(pipe.vae, "decode", decode))
        with suppress(_Stop):
            renderer([request])
    if not seen or not steps:
        raise PolicyError(
            f"{type(pipe).__name__} does not step its own scheduler by what its transformer returns; "
            "calibrate a pipeline whose scheduler's `step` is called once a step"
        )
    return _Calls(seen, to_meta(steps[0]), to_meta(decoded[0]) if decoded else None)


@dataclass(frozen=True)
class _Stream:
    """Of one call: shape of the image stream after the blocks, its bytes, those of all streams, and of the result.

    peak: bytes at most, without gradients.
    """

    rows: int
    tokens: int
    channels: int
    feature: int
    streams: int
    result: int
    peak: int


def _stream(transformer: Any, calls: list[tuple[Any, Any]]) -> list[_Stream]:
    unit, found = resolve_units(transformer, Stack())[0], list[_Stream]()
    _, last = block_lists(transformer)[-1]
    for args, kwargs in calls:
        seen: list[Any] = []
        handle = last.register_forward_hook(lambda *call, seen=seen: seen.append(call[2]))
        with torch.no_grad(), counted() as mode:
            result = transformer(*args, **kwargs)
        handle.remove()
        streams = _tensors(seen[0])
        image = (
            streams[min(image_stream(unit), len(streams) - 1)]
            if len(unit.streams) > 1
            else max(streams, key=lambda each: each.numel())
        )
        rows, channels = image.shape[0], image.shape[-1]
        tokens = image.numel() // (rows * channels)
        sums = bytes_of(image), sum(map(bytes_of, streams)), _bytes(result)
        found.append(_Stream(rows, tokens, channels, *sums, mode.peak))
    return found


def _kept(transformer: Any, calls: list[tuple[Any, Any]], forward: int, again: bool) -> Kept:
    graph, backward = 0, 0
    for args, kwargs in calls:
        _ask_gradients(args, kwargs)
        with ExitStack() as stack:
            if again:
                stack.enter_context(recomputed(transformer))
            mode = stack.enter_context(counted())
            outputs = [each for each in _tensors(transformer(*args, **kwargs)) if each.requires_grad]
            held = mode.live - sum(map(bytes_of, outputs))
            mode.restart()
            torch.autograd.backward(outputs, [torch.empty_like(each) for each in outputs])
            graph, backward = graph + held, max(backward, mode.peak - held)
    return Kept(forward, graph, backward)


def _ask_gradients(args: Any, kwargs: Any) -> None:
    """In the latents: the first floating tensor that is no vector."""
    for tensor in _tensors((args, kwargs)):
        if tensor.is_floating_point() and tensor.ndim > 2:
            tensor.requires_grad_()
            break


def _decode(vae: Any, z: Tensor) -> tuple[int, int]:
    copy = without_weights(vae)
    with torch.no_grad(), counted() as mode:
        (image, *_) = _tensors(copy.decode(z, return_dict=False))
    return mode.peak, 4 * image.numel()


def _tensors(value: Any) -> list[Tensor]:
    leaves: list[Tensor] = []
    match value:
        case Tensor():
            leaves = [value]
        case tuple() | list():
            leaves = [each for item in value for each in _tensors(item)]
        case dict():
            leaves = [each for item in value.values() for each in _tensors(item)]
    return leaves


def _bytes(value: Any) -> int:
    return sum(map(bytes_of, _tensors(value)))
