"""Replay a pipeline from the top, answered from what is known of the run, and stop it where nothing more is wanted.

A pipeline cannot be entered in the middle of its loop, and its loop is its own: how it guides, scales and steps is
told by nothing but itself. So a run that is to go on at step a is called from the top, and every transformer call
before a is answered by what it returned before: the sampler takes the very steps it took, and only latents are touched.
After step `stop` the call is left by an exception, the first time once it is known who steps: a pipeline may step
sound by a copy of its scheduler. Prompts are encoded once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cachesmith.calibrate.closed_loop.offload import bring, bring_for_gradients, holding, is_streamed
from cachesmith.runtime.discovery.state import State
from cachesmith.runtime.hooks.patch import method_of, patched
from cachesmith.runtime.models.denoisers import denoisers
from cachesmith.sampling.render import device_of
from cachesmith.sampling.waypoints import begun_at

Results = list[list[Any]]
"""What the transformer returned, on the host: by step, then by call within the step.

None for a call that wrote to a cache of keys and values: it is made again every time, for what it leaves there.
"""


class Stopped(BaseException):
    """Leaves a pipeline's call; no `except Exception` of the pipeline's catches it."""


@dataclass(eq=False)
class _Path:
    """The latents of the steps that `scheduler` takes; `calls` of it since a denoiser's, and in the step before.

    Cosmos has the halves of guidance stepped before the whole, and keeps what comes last.
    """

    scheduler: Any
    latents: list[Tensor] = field(default_factory=list)
    calls: int = 0
    usual: int = 1


class ReplayTrace:
    """What happened in one replay of `scheduler`'s steps, and of those of its copies, by which sound is stepped.

    Where a run begins in the middle of its scheduler's timesteps, the steps before hold what it begins with.
    """

    def __init__(self, samples: int, scheduler: Any) -> None:
        self.samples = samples
        self.results: Results = []
        self._paths = [_Path(scheduler)]
        self._all_known = False

    @property
    def latents(self) -> list[Tensor]:
        """The i-th went into step i, the last ones came out of the last step; see `joined`."""
        paths = [path.latents for path in self._paths]
        return [joined(parts) for parts in zip(*paths, strict=False)]

    @property
    def step(self) -> int:
        """Steps taken so far, by all schedulers that are known."""
        return max(0, min(len(path.latents) for path in self._paths) - 1)

    def called(self, stop: int | None) -> bool:
        """The denoiser is called: whoever steps has done so by then. Return whether `stop` steps are taken."""
        for path in self._paths:
            path.usual, path.calls = path.calls or path.usual, 0
        self._all_known = self.step > 0
        return stop is not None and self.step >= stop

    def stepped(
        self, scheduler: Any, timestep: Any, sample: Tensor, output: Tensor, stop: int | None
    ) -> bool:
        """A scheduler made `output` of `sample`. Return whether all of them are known to have taken `stop` steps."""
        path = next((path for path in self._paths if path.scheduler is scheduler), None)
        if path is None:
            self._paths.append(path := _Path(scheduler))
        if not path.latents:
            path.latents += [sample[: self.samples]] * (1 + begun_at(scheduler, timestep))
        path.calls += 1
        if path.calls > 1:
            path.latents.pop()
        path.latents.append(output[: self.samples])
        done = all(path.calls >= path.usual for path in self._paths)
        return stop is not None and self.step >= stop and self._all_known and done


def joined(parts: Sequence[Tensor]) -> Tensor:
    """All latents that are stepped at once, as one tensor: themselves, where they are of one kind, else [N, all].

    Several kinds are scaled to count alike, whatever their sizes: a mean over all is the mean of each one's mean.
    """
    if len(parts) == 1:
        return parts[0]
    flat = [part.flatten(1) for part in parts]
    share = sum(part.shape[1] for part in flat) / len(flat)
    return torch.cat([(share / part.shape[1]) ** 0.5 * part for part in flat], 1)


@contextmanager
def replayed(
    pipe: Any, samples: int, known: Results, stop: int | None = None, prompts: dict[str, Any] | None = None
) -> Iterator[ReplayTrace]:
    """Answer the denoisers' calls of the first `len(known)` steps, and leave the pipeline's call after `stop` steps.

    samples: of the batch; prompts: remembers what `encode_prompt` returned, for the next replay of the same batch.
    """
    trace = ReplayTrace(samples, pipe.scheduler)
    with ExitStack() as stack:
        answering = _Answering(known, trace, stop, pipe)
        for transformer in denoisers(pipe).values():
            stack.enter_context(patched(transformer, "forward", answering(transformer)))
        stack.enter_context(_stepping(pipe.scheduler, trace, stop))
        if prompts is not None and hasattr(pipe, "encode_prompt"):
            stack.enter_context(patched(pipe, "encode_prompt", _once(pipe.encode_prompt, prompts)))
        with suppress(Stopped):
            yield trace


class _Answering:
    """Wraps the forwards of all denoisers: calls of a step come in the same order every time."""

    def __init__(self, known: Results, trace: ReplayTrace, stop: int | None, pipe: Any):
        self.known, self.trace, self.stop = known, trace, stop
        self.every, self.device = [*denoisers(pipe).values()], device_of(pipe)
        self._step, self._calls = 0, 0

    def __call__(self, transformer: Any) -> Callable[..., Any]:
        forward = transformer.forward

        @wraps(forward)
        def answered(*args: Any, **kwargs: Any) -> Any:
            if self.trace.called(self.stop):
                raise Stopped
            step, call = self._place()
            known = self.known[step][call] if step < len(self.known) else None
            if known is None:
                bring(transformer, self.every)
                state = State.of(None, caches(args, kwargs))
                with holding() if torch.is_grad_enabled() and is_streamed(transformer) else nullcontext():
                    result = forward(*args, **kwargs)
                bring_for_gradients(tree_leaves(result), transformer, self.every)
            else:
                result = _made(known, lambda tensor: tensor.to(self.device, copy=True))
            if not torch.is_grad_enabled():
                results = self.trace.results
                results.extend([] for _ in range(step + 1 - len(results)))
                kept = known if known is not None else None if state.changed() else _made(result, _kept)
                results[step].append(kept)
            return result

        return answered

    def _place(self) -> tuple[int, int]:
        """The step in hand, and how many calls of it were before this one."""
        if self._step != self.trace.step:
            self._step, self._calls = self.trace.step, 0
        self._calls += 1
        return self._step, self._calls - 1


def caches(args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments that a call may leave something in for a later one: objects of a pipeline's own."""
    named = {**{str(i): value for i, value in enumerate(args)}, **kwargs}
    return {
        name: value for name, value in named.items() if hasattr(value, "__dict__") and not callable(value)
    }


@contextmanager
def _stepping(scheduler: Any, trace: ReplayTrace, stop: int | None) -> Iterator[None]:
    original = scheduler.step

    @wraps(getattr(original, "__func__", original))
    def step(this: Any, *args: Any, **kwargs: Any) -> Any:
        # a deep copy of the scheduler has inherited this, and steps by itself
        result = method_of(this, original)(*args, **kwargs)
        timestep, sample = (
            kwargs[name] if name in kwargs else args[i] for i, name in ((1, "timestep"), (2, "sample"))
        )
        if trace.stepped(this, timestep, sample, result[0], stop):
            raise Stopped
        return result

    with patched(scheduler, "step", MethodType(step, scheduler)):
        yield


def _once(encode: Callable[..., Any], prompts: dict[str, Any]) -> Callable[..., Any]:
    """Calls of one batch come in the same order every time."""
    calls = 0

    @wraps(encode)
    def encoded(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        key, calls = str(calls), calls + 1
        if key not in prompts:
            with torch.no_grad():
                prompts[key] = encode(*args, **kwargs)
        return prompts[key]

    return encoded


def part_of(results: Results, places: Tensor, samples: int) -> Results:
    """What the transformer returned for some of a batch's `samples`."""
    found: Results = _made(results, lambda tensor: rows_of(tensor, places, samples))
    return found


def rows_of(tensor: Tensor, places: Tensor, samples: int) -> Tensor:
    """The rows of some samples, in every half of guidance; tensors that are not of the batch as they are."""
    if tensor.ndim == 0 or len(tensor) % samples:
        return tensor
    halves = tensor.reshape(-1, samples, *tensor.shape[1:])
    return halves[:, places.to(tensor.device)].flatten(0, 1)


def _kept(tensor: Tensor) -> Tensor:
    """On the host; a copy in any case, since a pipeline may write into what it was given."""
    return tensor.to("cpu", copy=True)


def _made(result: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same with every tensor changed."""
    match result:
        case Tensor():
            return change(result)
        case tuple() | list():
            return type(result)(_made(item, change) for item in result)
        case dict():  # diffusers' outputs are dictionaries and dataclasses in one
            return type(result)(**{name: _made(item, change) for name, item in result.items()})
        case _:
            return result
