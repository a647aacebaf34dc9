"""A pipeline's first step: the transformer's calls, all latents that are stepped, and what the decoder is given."""

from contextlib import ExitStack, suppress
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from cachesmith.calibrate.memory.on_meta import META, to_meta
from cachesmith.policies import PolicyError
from cachesmith.runtime.hooks.patch import method_of, patched
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request


class _Stop(BaseException):
    """Leaves the pipeline's call."""


class _Stepped(tuple[Tensor]):
    """What a scheduler's step returns."""

    @property
    def prev_sample(self) -> Tensor:
        """The next latents."""
        return self[0]


class FirstStep:
    """Stands in for parts of a pipeline, and notes what they are given in the first of two steps."""

    def __init__(self, pipe: Any):
        self.calls: list[tuple[Any, Any]] = []
        self.stepped: list[Tensor] = []
        self.decoded: list[Tensor] = []
        self.whole = False
        self._forward, self._timesteps = pipe.transformer.forward, pipe.scheduler.set_timesteps
        self._on_meta = pipe.transformer.device == META

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Of the transformer. Its second step is called once all latents have been stepped."""
        if self._on_meta:
            args, kwargs = to_meta(args), to_meta(kwargs)
        self.whole = bool(self.stepped)
        if not self.whole:
            self.calls.append((to_meta(args), to_meta(kwargs)))
        return self._forward(*args, **kwargs)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Of the scheduler, and of copies of it: latents stay as they are."""
        sample = kwargs["sample"] if "sample" in kwargs else args[2]
        if not self.whole:
            self.stepped.append(to_meta(sample))
        return _Stepped((sample,))

    def decode(self, z: Tensor, *_: Any, **__: Any) -> Any:
        """Of the decoder."""
        self.decoded.append(to_meta(z))
        raise _Stop

    def set_timesteps(self, scheduler: Any) -> Any:
        """The scheduler's own, on the host where nothing is computed."""
        original = self._timesteps

        @wraps(getattr(original, "__func__", original))
        def on_host(this: Any, *args: Any, **kwargs: Any) -> Any:
            on = {"device": "cpu"} if self._on_meta else {}
            return method_of(this, original)(*args, **{**kwargs, **on})

        return MethodType(on_host, scheduler)


def first_step(renderer: Renderer, request: Request) -> FirstStep:
    """Look at the first step of one sample; `renderer` takes two."""
    pipe = renderer.pipe
    seen = FirstStep(pipe)
    parts = [
        (pipe.transformer, "forward", seen.forward),
        # a plain function: copies of the scheduler have it, too
        (pipe.scheduler, "step", lambda *args, **kwargs: seen.step(*args, **kwargs)),
        (pipe.scheduler, "set_timesteps", seen.set_timesteps(pipe.scheduler)),
    ]
    if getattr(pipe, "vae", None) is not None:
        parts.append((pipe.vae, "decode", seen.decode))
    with ExitStack() as stack, torch.no_grad():
        for part in parts:
            stack.enter_context(patched(*part))
        with suppress(_Stop):
            renderer([request])
    if not seen.calls or not seen.stepped:
        raise PolicyError(
            f"{type(pipe).__name__} does not step its own scheduler by what its transformer returns; "
            "calibrate a pipeline whose scheduler's `step` is called once a step"
        )
    return seen
