"""How a pipeline guides its samples, and what its transformer's blocks look like, told from one step of one batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.replay import replayed
from cachesmith.calibrate.turns import turns_of
from cachesmith.policies import MAIN, Follower, PolicyError, Stack
from cachesmith.runtime import Answer, Tick, UnitCall, UnitResult, UseOutput, Watcher, watch
from cachesmith.runtime.pipeline_call import PipelineCall
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request

_Guidance = Literal["none", "batched", "sequential"]


@dataclass(frozen=True)
class Shape:
    """guidance: none, in one batch, or by calls of its own; follower: the half that is forecast from the other.

    channels and tokens are those of the image stream between blocks, latents those of one sample. call: as asked for.
    denoisers: those that are called, by name, in the order in which each takes over; starts: the step at which it does,
    the first one's where the run begins.
    """

    guidance: _Guidance
    follower: Follower | None
    channels: int
    tokens: int
    latents: int
    call: PipelineCall
    denoisers: tuple[str, ...] = (MAIN,)
    starts: tuple[int, ...] = (0,)


class _Bypass(Watcher):
    """Has no block computed: hands on what went into the first, as a place where gradients can be asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []
        self.call = PipelineCall({})

    def begin(self, tick: Tick) -> None:
        """A transformer call."""
        super().begin(tick)
        self.call = tick.call

    def answer(self, call: UnitCall) -> Answer:
        """Return the inputs."""
        count = len(call.inputs)
        if count > 1:
            raise PolicyError(f"{count} streams leave the blocks; only models with one can be calibrated")
        self.inputs.append(call.inputs[0].detach().clone().requires_grad_())
        return UseOutput((self.inputs[-1],))

    def observe(self, result: UnitResult) -> None:
        """Nothing is computed."""


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
    reach = torch.autograd.grad(latents.square().sum() / 2, bypass.inputs)
    first = bypass.inputs[0]
    turns = turns_of(renderer, requests, first.shape[-1], trace.step - 1)
    guidance: _Guidance = "sequential" if len(reach) > 1 else "batched" if len(first) > samples else "none"
    return Shape(
        guidance,
        _follower(guidance, reach, samples),
        first.shape[-1],
        first.shape[1],
        latents[0].numel(),
        bypass.call,
        tuple(turns),
        tuple(turns.values()),
    )


def _follower(guidance: _Guidance, reach: tuple[Tensor, ...], samples: int) -> Follower | None:
    if guidance == "sequential":
        return "later"
    if guidance == "none" or len(reach[0]) != 2 * samples:
        return None
    first, second = reach[0].float().square().flatten(1).sum(1).chunk(2)
    return "first" if bool(first.sum() < second.sum()) else "second"
