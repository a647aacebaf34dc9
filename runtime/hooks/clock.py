"""Which step, branch and run a transformer call belongs to, and whether it belongs to a run at all.

The scheduler is the only clock: `set_timesteps` starts a run, and a step is over when `step` is called, however often,
or, in loops that never call it, when the timestep argument changes. The argument's value tells where a run starts.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cachesmith.runtime.hooks.caller import calling_frame, numbers
from cachesmith.runtime.hooks.patch import heard
from cachesmith.runtime.hooks.timesteps import Form, Value, forms, place_in
from cachesmith.runtime.pipeline_call import PipelineCall

ANOTHER_PIPELINE = (
    "another pipeline calls this transformer, with a scheduler of its own; apply the policy to that pipeline, or give "
    "each a `cachesmith.replicate(pipe)`"
)
ANOTHER_THREAD = (
    "another thread calls this transformer during a run; give every thread a worker of its own: "
    "`cachesmith.replicate(pipe)`"
)
NO_TIMESTEPS = "the scheduler that the policy follows has no timesteps yet: the caller steps another one"
OTHERS = "another caller"
"""The branch of calls that belong to no run of ours."""


@dataclass(frozen=True)
class Tick:
    """One transformer call. `step` is None when nothing is to be forecast: the timestep is not one of the scheduler's,
    or for another reason, `why`. `call`: what the run's pipeline was asked for. `latents` are what the transformer is
    called with."""

    run: int
    step: int | None
    branch: str
    why: str | None = None
    call: PipelineCall = field(default=PipelineCall({}), compare=False)
    latents: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass
class _List:
    """The scheduler's timesteps: on the host, in all forms, and in those that the transformer may be given."""

    host: list[float] | None = None
    forms: list[Form] | None = None
    possible: tuple[Form, ...] = ()


@dataclass
class _Progress:
    """The run in hand: the `last` step that was called, and the one that `scheduler.step` was `told` of; whether it
    was called since (`stepped`) or at all (`moves`); the last timestep's value, and the first latents of a run that
    nothing announced; whose run it is, on which thread; whether `strangers` were seen; the calls of this step."""

    last: int | None = None
    told: int | None = None
    stepped: bool = False
    moves: bool = False
    strangers: bool = False
    value: Value | None = None
    first: Tensor | None = None
    caller: Any = None
    thread: int = 0
    call: PipelineCall | None = None
    calls: Counter[str | None] = field(default_factory=Counter)


class Clock:
    """Locates transformer calls on the scheduler's list of timesteps.

    On an accelerator, reading a value stalls the stream: it is done until `step` is heard for the first time in a run
    that `set_timesteps` announced, and always in loops that call neither. `pipe`: whose scheduler is followed even
    where it is replaced by another. `refused`: why the last call was none of the run's, if so.
    """

    def __init__(self, pipe: Any = None) -> None:
        self.run = 0
        self.scheduler: Any = None
        self._pipe = pipe
        self._following = ExitStack()
        self._contexts = threading.local()
        self.refused: str | None = None
        self._announced = False
        self._list, self._now = _List(), _Progress()

    @property
    def context(self) -> str | None:
        """The cache context that the pipeline opened on this thread."""
        return getattr(self._contexts, "name", None)

    @context.setter
    def context(self, name: str | None) -> None:
        self._contexts.name = name

    @property
    def call(self) -> PipelineCall:
        """What the pipeline was asked for in the run in hand."""
        return PipelineCall({}) if self._now.call is None else self._now.call

    @contextmanager
    def follow(self, scheduler: Any) -> Iterator["Clock"]:
        """Watch `scheduler` while the context is open."""
        self._listen(scheduler)
        try:
            yield self
        finally:
            self._following.close()

    def timesteps(self) -> list[float]:
        """The run's timesteps on the host; read from the device once a run."""
        if self._list.host is None:
            self._list.host = [float(t) for t in torch.as_tensor(self.scheduler.timesteps).tolist()]
        return self._list.host

    def tick(self, timestep: Tensor | float, latents: Any = None) -> Tick:
        """Place one transformer call for `latents`, [B, ...]."""
        frame = calling_frame()
        caller: Any = None if frame is None else frame.f_locals["self"]
        if self._replaced(caller):
            self._listen(caller.scheduler)
        self.refused = self._refusal(caller)
        if self.refused is not None:
            self._now.strangers = True
            return Tick(self.run, None, OTHERS, self.refused)
        step = self._locate(timestep, latents)
        if self._now.last is None and self._now.call is None:
            self._begin(caller, {} if frame is None else numbers(frame), latents)
        if step is not None:
            if step != self._now.last:
                self._now.calls.clear()
            self._now.last, self._now.stepped = step, False
        return Tick(self.run, step, self._branch(), call=self.call)

    def stranger(self) -> bool:
        """Whether the call in hand, on this thread, is none of the run's; changes nothing."""
        frame = calling_frame()
        caller = None if frame is None else frame.f_locals["self"]
        return not self._replaced(caller) and self._refusal(caller) is not None

    def _replaced(self, caller: Any) -> bool:
        """Whether the pipeline that the policy is for has got another scheduler."""
        return caller is not None and caller is self._pipe and caller.scheduler is not self.scheduler

    def _begin(self, caller: Any, arguments: dict[str, float], latents: Any) -> None:
        """The first call of a run."""
        if self._now.strangers:  # whoever watches must not take this for the run that strangers were seen in
            self.run += 1
        shape = tuple(latents.shape[1:]) if isinstance(latents, Tensor) else ()
        self._now.caller, self._now.thread = caller, threading.get_ident()
        self._now.call = PipelineCall(arguments, shape)

    def _refusal(self, caller: Any) -> str | None:
        """Why a call is not one of the run that the scheduler tells of."""
        if caller is not None and caller.scheduler is not self.scheduler:
            return ANOTHER_PIPELINE
        if getattr(self.scheduler, "num_inference_steps", 1) is None:
            return NO_TIMESTEPS
        if self._now.call is not None and threading.get_ident() != self._now.thread:
            return ANOTHER_THREAD
        if self._now.call is not None and caller is not self._now.caller:
            return ANOTHER_PIPELINE
        return None

    def _branch(self) -> str:
        """The cache context, or else the order of calls within a step, tells the guidance branches apart."""
        count = self._now.calls[self.context]
        self._now.calls[self.context] += 1
        if self.context is None:
            return str(count)
        return f"{self.context}.{count}" if count else self.context

    def _listen(self, scheduler: Any) -> None:
        self._following.close()
        if self.scheduler is not None:
            self._announce()
        self.scheduler = scheduler
        self._following.enter_context(heard(scheduler, "set_timesteps", lambda *_, **__: self._announce()))
        self._following.enter_context(heard(scheduler, "step", self._advance))

    def _announce(self) -> None:
        """`scheduler.set_timesteps` was called."""
        self.run += 1
        self._announced = True
        self._list, self._now = _List(), _Progress()

    def _start_over(self) -> None:
        """A run begins without `set_timesteps`, on the same list."""
        self.run += 1
        self._announced = False
        self._now = _Progress()

    def _advance(self, *args: Any, **kwargs: Any) -> None:
        """`scheduler.step(output, timestep, sample)` was called."""
        timestep = args[1] if len(args) > 1 else kwargs.get("timestep")
        told = place_in(self.scheduler.timesteps, timestep, self.timesteps())
        self._now.told = self._now.last if told is None else told
        self._now.stepped = self._now.moves = True
        self._now.first = None

    def _locate(self, timestep: Tensor | float, latents: Any) -> int | None:
        expected = self._now.told + 1 if self._now.stepped and self._now.told is not None else self._now.last
        if expected is not None and self._announced and self._now.moves and _afar(timestep):
            step = expected if expected < len(self.timesteps()) else None
        else:
            value = Value(timestep)
            step = self._start(value) if expected is None else self._next(expected, value)
            self._now.value = value
        if step is not None and (self._back(step) or self._again(step, latents)):
            self._start_over()
        if self._now.last is None and not self._announced and isinstance(latents, Tensor):
            self._now.first = latents
        elif step != self._now.last:
            self._now.first = None
        return step

    def _back(self, step: int) -> bool:
        """Back in time without `set_timesteps`: a new run all the same."""
        return self._now.last is not None and step < self._now.last

    def _again(self, step: int, latents: Any) -> bool:
        """Whether a second call at the first step of a run that nothing announced is the first of another run.

        A call for another number of rows is a branch: nothing would be forecast for one from the other.
        """
        first = self._now.first
        if first is None or step != self._now.last or not isinstance(latents, Tensor):
            return False
        return first.shape == latents.shape and not torch.equal(first, latents)

    def _start(self, value: Value) -> int | None:
        """Where a run starts: where the pipeline told the scheduler, at the first step, or else where it must be.

        A form that is not known is taken for the first step's only where a run was announced.
        """
        begin = getattr(self.scheduler, "begin_index", None) or 0
        if self._list.forms is None:
            self._list.forms = forms(self.scheduler, self.timesteps())
        known = self._list.forms
        self._list.possible = tuple(form for form in known if form.starts(begin, value))
        if self._list.possible:
            return begin
        found = {form: step for form in known if (step := form.find(value)) is not None}
        if len(set(found.values())) == 1:
            self._list.possible = tuple(found)
            return next(iter(found.values()))
        return begin if self._announced and not found else None

    def _next(self, expected: int, value: Value) -> int | None:
        """Where a run that has begun goes on: in a form that it may have had so far."""
        possible = self._list.possible
        if not possible:
            expected += not self._now.stepped and value != self._now.value
            return expected if expected < len(self.timesteps()) else None
        for step in (expected,) if self._now.stepped else (expected, expected + 1):
            still = tuple(form for form in possible if form.holds(step, value))
            if still:
                self._list.possible = still
                return step
        return possible[0].find(value)


def _afar(timestep: Tensor | float) -> bool:
    return isinstance(timestep, Tensor) and timestep.device.type != "cpu"
