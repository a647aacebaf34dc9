"""How a pipeline guides its samples, and what its transformer's blocks look like, told from one step of one batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from cachesmith.calibrate.closed_loop.replay import replayed
from cachesmith.calibrate.turns import course_of
from cachesmith.policies import MAIN, Follower, PolicyError, Stack
from cachesmith.runtime import Answer, Tick, UnitCall, UnitResult, UseOutput, Watcher, watch
from cachesmith.runtime.features import Feature, alike
from cachesmith.runtime.pipeline_call import SIZES, PipelineCall
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request

_Guidance = Literal["none", "batched", "sequential"]


@dataclass(frozen=True)
class Shape:
    """guidance: none, in one batch, or by calls of its own; follower: the half that is forecast from the other.

    channels: of each stream that leaves the blocks. call: as asked for. uncached: full computations of a run.
    denoisers: which are called in each part of a run (see `turns`), by name; starts: the step at which the part
    begins, the first one's where the run does.
    """

    guidance: _Guidance
    follower: Follower | None
    channels: tuple[int, ...]
    call: PipelineCall
    uncached: float
    denoisers: tuple[tuple[str, ...], ...] = ((MAIN,),)
    starts: tuple[int, ...] = (0,)


class _Bypass(Watcher):
    """Has no block computed: hands on what went into the first, as a place where gradients can be asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Feature] = []
        self.call = PipelineCall({})

    def begin(self, tick: Tick) -> None:
        """A transformer call."""
        super().begin(tick)
        self.call = tick.call

    def answer(self, call: UnitCall) -> Answer:
        """Return the inputs."""
        self.inputs.append(tuple(stream.detach().clone().requires_grad_() for stream in call.inputs))
        return UseOutput(self.inputs[-1])

    def observe(self, result: UnitResult) -> None:
        """Nothing is computed."""


class _Rows(Watcher):
    """Has no block computed, and compares rows that enter the blocks with those of the latents."""

    def __init__(self) -> None:
        super().__init__()
        self.same = True

    def answer(self, call: UnitCall) -> Answer:
        """Return the inputs."""
        latents = self._tick.latents
        self.same &= latents is None or all(len(stream) == len(latents) for stream in call.inputs)
        return UseOutput(call.inputs)

    def observe(self, result: UnitResult) -> None:
        """Nothing is computed."""


def rows_are_samples(renderer: Renderer, requests: Sequence[Request]) -> bool:
    """Whether the streams of one batch have a row for every row of its latents, so that each is of one sample.

    Latte has a row for every frame, ERNIE-Image one for every token. Takes one step with no block computed.
    """
    rows = _Rows()
    with watch(renderer.pipe, Stack(), rows), replayed(renderer.pipe, len(requests), [], 1):
        renderer(requests)
    return rows.same


class _Asked(Watcher):
    """Has no block computed, and notes what the pipeline is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[PipelineCall] = []

    def begin(self, tick: Tick) -> None:
        """A transformer call."""
        super().begin(tick)
        if not self.calls or self.calls[-1] is not tick.call:
            self.calls.append(tick.call)

    def answer(self, call: UnitCall) -> Answer:
        """Return the inputs."""
        return UseOutput(call.inputs)

    def observe(self, result: UnitResult) -> None:
        """Nothing is computed."""


def other_sizes(renderer: Renderer, known: Request, requests: Sequence[Request]) -> list[PipelineCall]:
    """Return what the pipeline is asked for with one request of every size but that of `known`.

    Nothing is encoded or sampled where there is none; else runs with no block computed tell.
    """
    first = {_size(request): request for request in reversed((known, *requests))}
    del first[_size(known)]
    if not first:
        return []
    asked = _Asked()
    with watch(renderer.pipe, Stack(), asked):
        Renderer(renderer.pipe, renderer.steps, 1, **renderer.common)([*reversed(first.values())])
    return asked.calls


def _size(request: Request) -> tuple[Any, ...]:
    return tuple(request.arguments.get(name) for name in SIZES)


def probe(renderer: Renderer, requests: Sequence[Request]) -> Shape:
    """Take the first step of one batch with no block computed.

    The half that follows is the one that moves the latents less: what its forecast is off by counts less.
    Raises `PolicyError` where what leaves the blocks does not reach the sampler.
    """
    bypass, samples = _Bypass(), len(requests)
    replay = replayed(renderer.pipe, samples, [], 1)
    with watch(renderer.pipe, Stack(), bypass), replay as trace:
        renderer.differentiable(requests)
    if not bypass.inputs or len(trace.latents) < 2 or not trace.latents[-1].requires_grad:
        raise PolicyError(
            f"{type(renderer.pipe).__name__} does not step its own scheduler by what its transformer returns; "
            "calibrate a pipeline whose scheduler's `step` is called once a step"
        )
    latents = trace.latents[-1]
    streams = [stream for feature in bypass.inputs for stream in feature]
    reach = torch.autograd.grad(latents.square().sum() / 2, streams, materialize_grads=True)
    first = bypass.inputs[0]
    channels = tuple(stream.shape[-1] for stream in first)
    course = course_of(renderer, requests)
    calls = [reach[i : i + len(first)] for i in range(0, len(reach), len(first))]
    guidance: _Guidance = (
        "sequential" if course.branches > 1 else "batched" if len(first[0]) > samples else "none"
    )
    return Shape(
        guidance,
        _follower(guidance, calls, samples) if course.steady and course.branches == len(calls) else None,
        channels,
        bypass.call,
        course.calls,
        *zip(*course.parts, strict=True),
    )


def _follower(guidance: _Guidance, calls: Sequence[Feature], samples: int) -> Follower | None:
    if guidance == "sequential":
        # calls of other rows or tokens have no difference from the first one
        return "later" if all(alike(call, calls[0]) for call in calls) else None
    if guidance == "none" or len(calls[0][0]) != 2 * samples:
        return None
    halves = [stream.float().square().flatten(1).sum(1).chunk(2) for stream in calls[0]]
    first, second = (
        sum(float(half.sum()) for half in half_of_all) for half_of_all in zip(*halves, strict=True)
    )
    return "first" if first < second else "second"
