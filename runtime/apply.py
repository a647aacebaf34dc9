"""`apply`: run a diffusers pipeline, or a bare transformer, under a policy."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from cachesmith.policies import Policy, PolicyError
from cachesmith.runtime.denoiser import denoisers_of
from cachesmith.runtime.engines.bundle import BoundEngines, Engines, bind_engines
from cachesmith.runtime.engines.drop_weights import check_droppable
from cachesmith.runtime.hooks.clock import Clock
from cachesmith.runtime.hooks.patch import heard
from cachesmith.runtime.models.denoisers import denoisers
from cachesmith.runtime.models.units import Unit, network_units
from cachesmith.runtime.session import Session


@contextmanager
def apply(
    pipe: Any,
    policy: Policy,
    profile: str | None = None,
    *,
    scheduler: Any = None,
    memory_budget: int | None = None,
    bundle: Engines | str | os.PathLike[str] | None = None,
    drop_torch_weights: bool = False,
) -> Iterator[Session]:
    """Sample under `policy` until the context is left.

    pipe: a diffusers pipeline, or a transformer (then pass its `scheduler`). Every denoiser that a pipeline has is
    counted in one session: those after the first (`transformer_2`) run under the policy, too, if it is bound to no
    model, and are otherwise computed at every step, which is told.
    profile: a profile of the policy; by default its only one, or `balanced`.
    memory_budget: largest cache in bytes; the first step is refused with the exact figure if it needs more.
    bundle: engines that compute the units, as a folder or, loaded once for many calls, from `open_bundle`.
    drop_torch_weights: free the weights of what the engines compute; this outlasts the context.

    Yields the `Session`, whose `stats` and `plan` tell what happened. Raises `PolicyError` when the policy does not
    fit the model, the sampler or the number of steps, and `EngineError` when the bundle does not fit the model.
    """
    named, followed = denoisers(pipe), _scheduler(pipe, scheduler)
    main = next(iter(named.values()))
    chosen = policy.profile(profile)
    clock = Clock(None if scheduler is not None else pipe)
    parts = denoisers_of(named, policy, chosen, clock)
    first, *others = parts
    session = first.session(memory_budget)
    for part in others:
        part.session(memory_budget, session.stats)
    if drop_torch_weights:
        check_droppable(chosen, first.units, bundle)
    engines = _engines(bundle, main, pipe, first.units, drop_torch_weights, session)

    def check_parts(*_: Any, **__: Any) -> None:
        _check_replaced(pipe, named)

    with ExitStack() as stack:
        stack.enter_context(clock.follow(followed))
        stack.enter_context(heard(followed, "set_timesteps", check_parts))
        for part in parts:
            stack.enter_context(part.attached(engines if part is first else None))
        yield session
        check_parts()


def _engines(
    bundle: Engines | str | os.PathLike[str] | None,
    transformer: nn.Module,
    pipe: Any,
    units: tuple[Unit, ...],
    drop: bool,
    session: Session,
) -> BoundEngines | None:
    if bundle is None:
        return None
    return bind_engines(bundle, transformer, pipe, network_units(units), drop, session.stats)


def _check_replaced(pipe: Any, named: dict[str, nn.Module]) -> None:
    """Raise `PolicyError` where the pipeline has got other networks since the policy was applied."""
    for name, transformer in named.items():
        if not isinstance(pipe, nn.Module) and getattr(pipe, name, None) is not transformer:
            raise PolicyError(
                f"the pipeline's {name} was replaced under a policy, so it ran without; leave the context, replace "
                "it, and apply again"
            )


def _scheduler(pipe: Any, scheduler: Any) -> Any:
    scheduler = scheduler if scheduler is not None else getattr(pipe, "scheduler", None)
    if scheduler is None:
        raise PolicyError("a bare transformer tells nothing of the steps; pass scheduler=")
    return scheduler
