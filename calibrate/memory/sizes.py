"""What one sample takes of memory in one step, found by running the denoiser once on the meta device."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.gradient_checkpointing import recomputed
from cachesmith.calibrate.memory.first_step import first_step
from cachesmith.calibrate.memory.live_bytes import bytes_of, module_bytes
from cachesmith.calibrate.memory.on_meta import counted, without_weights
from cachesmith.policies import Stack
from cachesmith.runtime.models.units import BlockRun, block_lists, resolve_units
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


class Width(NamedTuple):
    """Of one stream."""

    tokens: int
    channels: int


@dataclass(frozen=True)
class Sizes:
    """weights: bytes by component. rows: of a stream, in all calls of a step; streams: those that leave the blocks.

    Bytes of one sample: latents; result: what the transformer returns in a step; prompt: what it is given; feature: all
    that leaves the blocks, in all calls of a step; computed, recomputed: a step with gradients, the latter with
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
    streams: tuple[Width, ...]
    rows: int

    @property
    def itemsize(self) -> int:
        """Bytes of an element of the streams."""
        return self.feature // (self.rows * sum(each.tokens * each.channels for each in self.streams))

    @property
    def tokens(self) -> int:
        """Of all streams."""
        return sum(each.tokens for each in self.streams)

    @property
    def channels(self) -> int:
        """Of all streams."""
        return sum(each.channels for each in self.streams)


def sizes_of(renderer: Renderer, request: Request) -> Sizes:
    """Look at two steps of one sample. The pipeline may be on the meta device; else the steps are computed."""
    pipe = renderer.pipe
    seen = first_step(Renderer(pipe, 2, 1, **renderer.common), request)
    transformer = without_weights(pipe.transformer)
    stream = _stream(transformer, seen.calls)
    forward = max(each.peak for each in stream)
    computed, kept = (_kept(transformer, seen.calls, forward, again) for again in (False, True))
    inputs = len(block_lists(transformer)) * sum(each.passed for each in stream)
    latents = _bytes(seen.stepped)
    parts = {n: c for n, c in pipe.components.items() if isinstance(c, torch.nn.Module)}
    decode, image = _decode(pipe.vae, seen.decoded[0]) if seen.decoded else (0, latents)
    return Sizes(
        weights={name: module_bytes(part) for name, part in parts.items()},
        latents=latents,
        result=sum(each.result for each in stream),
        prompt=sum(_bytes(each) for each in seen.calls),
        feature=sum(each.feature for each in stream),
        computed=computed,
        recomputed=kept,
        tail=max(0, kept.graph - inputs),
        decode=decode,
        image=image,
        streams=stream[0].widths,
        rows=sum(each.rows for each in stream),
    )


@dataclass(frozen=True)
class _Stream:
    """Of one call: what leaves the blocks; bytes of that, of all that the last block passes on, and of the result.

    peak: bytes at most, without gradients.
    """

    rows: int
    widths: tuple[Width, ...]
    feature: int
    passed: int
    result: int
    peak: int


def _stream(transformer: Any, calls: list[tuple[Any, Any]]) -> list[_Stream]:
    unit, found = _stack(transformer), list[_Stream]()
    _, last = block_lists(transformer)[-1]
    for args, kwargs in calls:
        seen: list[Any] = []
        handle = last.register_forward_hook(lambda *call, seen=seen: seen.append(call[2]))
        with torch.no_grad(), counted() as mode:
            result = transformer(*args, **kwargs)
        handle.remove()
        leaving = unit.select(seen[0] if isinstance(seen[0], tuple) else (seen[0],), -1)
        rows = len(leaving[0])
        widths = tuple(Width(each.numel() // (rows * each.shape[-1]), each.shape[-1]) for each in leaving)
        found.append(_Stream(rows, widths, _bytes(leaving), _bytes(seen[0]), _bytes(result), mode.peak))
    return found


def _stack(transformer: Any) -> BlockRun:
    (unit,) = resolve_units(transformer, Stack())
    assert isinstance(unit, BlockRun)
    return unit


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
