"""`apply`: run a diffusers pipeline, or a bare transformer, under a policy."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from cachesmith.policies import Policy, PolicyError, resolve_policy
from cachesmith.runtime.denoiser import Counted, Denoiser, denoisers_of
from cachesmith.runtime.engines.bundle import BoundEngines, Engines, bind_engines
from cachesmith.runtime.engines.drop_weights import check_droppable
from cachesmith.runtime.hooks.caller import is_sampling
from cachesmith.runtime.hooks.clock import Clock
from cachesmith.runtime.hooks.patch import heard
from cachesmith.runtime.models.denoisers import denoisers, part_name
from cachesmith.runtime.models.units import network_units
from cachesmith.runtime.runs.session import Session


@contextmanager
def apply(
    pipe: Any,
    policy: Policy | str | os.PathLike[str],
    profile: str | None = None,
    *,
    scheduler: Any = None,
    memory_budget: int | None = None,
    bundle: Engines | str | os.PathLike[str] | None = None,
    drop_torch_weights: bool = False,
) -> Iterator[Session]:
    """Sample under `policy` until the context is left.

    pipe: a diffusers pipeline, or a transformer (then pass its `scheduler`). Every denoiser that a pipeline has is
    counted in one session: those after the first (`transformer_2`) run under their part of the policy, or under all of
    it if it is bound to no model, and are otherwise computed at every step, which is told.
    policy: a policy or, as `load` takes it, the path of its file or `user/name` on the Hugging Face Hub.
    profile: a profile of the policy; by default its only one, or `balanced`.
    memory_budget: largest cache in bytes; the first step is refused with the exact figure if it needs more.
    bundle: engines that compute the units, as a folder or, loaded once for many calls, from `open_bundle`.
    drop_torch_weights: free the weights of what the engines compute; this outlasts the context.

    Yields the `Session`, whose `stats` and `plan` tell what happened. Raises `PolicyError` when the policy does not
    fit the model, the sampler or the number of steps, and `EngineError` when the bundle does not fit the model.
    """
    named, followed = denoisers(pipe), _scheduler(pipe, scheduler)
    clock = Clock(None if scheduler is not None else pipe)
    attachment = Attachment(pipe, resolve_policy(policy), clock, memory_budget, bundle, drop_torch_weights)

    def check_parts(*_: Any, **__: Any) -> None:
        _check_replaced(pipe, named)

    with ExitStack() as stack:
        session = attachment.prepare(profile)
        stack.enter_context(clock.follow(followed))
        stack.enter_context(heard(followed, "set_timesteps", check_parts))
        tells = hasattr(pipe, "progress_bar")  # even where its scheduler was replaced as well
        if tells:
            stack.enter_context(heard(pipe, "progress_bar", check_parts))
        stack.enter_context(attachment)
        yield session
        if not tells:
            check_parts()


class Attachment:
    """A policy on a pipeline: one of its profiles at a time, all under one session."""

    def __init__(
        self,
        pipe: Any,
        policy: Policy,
        clock: Clock,
        memory_budget: int | None,
        bundle: Engines | str | os.PathLike[str] | None,
        drop_torch_weights: bool,
    ):
        self.pipe, self.policy, self.clock = pipe, policy, clock
        self._budget, self._bundle, self._drop = memory_budget, bundle, drop_torch_weights
        self._sessions: list[Session] = []
        self._attached = ExitStack()
        self._parts: list[Denoiser] = []
        self._engines: list[BoundEngines | None] = []

    def prepare(self, profile: str | None) -> Session:
        """Resolve and check a profile; what is attached stays as it is until `__enter__`."""
        parts = denoisers_of(denoisers(self.pipe), self.policy, profile, self.clock)
        if self._drop:
            for part in parts:
                check_droppable(part.profile, part.units, self._bundle)
        if not self._sessions:
            first = Session(self._budget, self.use)
            self._sessions = [first, *(Session(self._budget, self.use, first.stats) for _ in parts[1:])]
        names = [part.name for part in parts]
        self._engines = [self._bound(part, part_name(part.name, names)) for part in parts]
        self._parts = parts
        return self._sessions[0]

    def use(self, profile: str) -> None:
        """Put another profile in the place of the attached one, for the runs to come.

        Raises `PolicyError` in the middle of a run, whose picture would be neither profile's.
        """
        if is_sampling(self.pipe):
            raise PolicyError(
                "a request is in progress, and its picture would be neither profile's; use another profile between "
                "two requests, or have a worker for each: `cachesmith.replicate(pipe)`"
            )
        self.prepare(profile)
        self._attached.close()
        self.__enter__()

    def __enter__(self) -> None:
        with ExitStack() as stack:  # all denoisers or none
            for part, session, engines in zip(self._parts, self._sessions, self._engines, strict=True):
                stack.enter_context(part.attached(session, engines))
            self._attached = stack.pop_all()

    def __exit__(self, *error: object) -> None:
        self._attached.__exit__(None, None, None)

    def _bound(self, part: Denoiser, name: str) -> BoundEngines | None:
        if self._bundle is None or isinstance(part, Counted):
            return None
        stats = self._sessions[0].stats
        units = network_units(part.units)
        engines = bind_engines(self._bundle, part.transformer, self.pipe, units, self._drop, stats, name)
        self._bundle = engines.engines
        return engines


def _check_replaced(pipe: Any, named: dict[str, nn.Module]) -> None:
    """Raise `PolicyError` where the pipeline has got other networks since the policy was applied."""
    for name, transformer in named.items():
        if not isinstance(pipe, nn.Module) and getattr(pipe, name, None) is not transformer:
            raise PolicyError(
                f"the pipeline's {name} was replaced under a policy, which does not go with it; leave the context (or "
                "call cachesmith.disable), replace it, and apply again"
            )


def _scheduler(pipe: Any, scheduler: Any) -> Any:
    scheduler = scheduler if scheduler is not None else getattr(pipe, "scheduler", None)
    if scheduler is None:
        raise PolicyError("a bare transformer tells nothing of the steps; pass scheduler=")
    return scheduler
