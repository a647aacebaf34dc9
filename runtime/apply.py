"""`apply`: run a diffusers pipeline, or a bare transformer, under a policy."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from cachesmith.policies import Policy, PolicyError, Profile
from cachesmith.runtime.engines.bundle import Engines, bind_engines
from cachesmith.runtime.engines.drop_weights import check_droppable
from cachesmith.runtime.guidance import guided
from cachesmith.runtime.hooks.attach import attach, clock_for
from cachesmith.runtime.match import check_model, check_scale, check_scheduler, fit_profile
from cachesmith.runtime.models.sampler import axis_values, is_flow, noise_levels
from cachesmith.runtime.models.units import Unit, network_units, resolve_units
from cachesmith.runtime.plan.compile_plan import compile_plan
from cachesmith.runtime.plan.plan import Plan
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

    pipe: a diffusers pipeline with a `transformer`, or a transformer (then pass its `scheduler`).
    profile: a profile of the policy; by default its only one, or `balanced`.
    memory_budget: largest cache in bytes; the first step is refused with the exact figure if it needs more.
    bundle: engines that compute the units, as a folder or, loaded once for many calls, from `open_bundle`.
    drop_torch_weights: free the weights of what the engines compute; this outlasts the context.

    Yields the `Session`, whose `stats` and `plan` tell what happened. Raises `PolicyError` when the policy does not
    fit the model, the sampler or the number of steps, and `EngineError` when the bundle does not fit the model.
    """
    transformer, followed = _parts(pipe, scheduler)
    chosen = policy.profile(profile)
    enabled = check_model(policy, transformer) and check_scheduler(policy, followed)
    try:
        units, clock = resolve_units(transformer, chosen.units), clock_for(transformer)
    except PolicyError:
        if enabled:
            raise
        yield Session(lambda _: None)
        return

    plans: dict[tuple[float, ...], Plan] = {}

    def planner(start: int) -> Plan | None:
        if scheduler is None and pipe.scheduler is not followed:
            raise PolicyError(
                "the pipeline's scheduler was replaced under a policy; leave the context and apply again"
            )
        if not enabled or not check_scale(policy, getattr(pipe, "guidance_scale", None)):
            return None
        return _plan(policy, chosen, units, followed, start, plans)

    session = Session(planner, memory_budget)
    if drop_torch_weights:
        check_droppable(chosen, units, bundle)
    engines = (
        None
        if bundle is None
        else bind_engines(bundle, transformer, pipe, network_units(units), drop_torch_weights, session.stats)
    )
    with ExitStack() as stack:
        stack.callback(session.free)
        stack.enter_context(clock.follow(followed))
        stack.enter_context(
            attach(transformer, units, guided(session, units, session.computes), clock, engines)
        )
        yield session
        session.close()


def _plan(
    policy: Policy,
    chosen: Profile,
    units: tuple[Unit, ...],
    scheduler: Any,
    start: int,
    plans: dict[tuple[float, ...], Plan],
) -> Plan | None:
    """The plan of a run that begins at step `start`; None where the policy is not to be used for its noise levels.

    A run like the last one follows the same plan.
    """
    sigmas = noise_levels(scheduler)
    fitted = fit_profile(policy, chosen, sigmas)
    if fitted is None:
        return None
    key = (*sigmas, start)
    if key not in plans:
        plans.clear()
        times = axis_values(fitted.axis, sigmas, is_flow(scheduler))
        plans[key] = compile_plan(policy, fitted, times, units, start)
    return plans[key]


def _parts(pipe: Any, scheduler: Any) -> tuple[nn.Module, Any]:
    transformer = pipe if isinstance(pipe, nn.Module) else getattr(pipe, "transformer", None)
    scheduler = scheduler if scheduler is not None else getattr(pipe, "scheduler", None)
    if transformer is None:
        raise PolicyError(
            f"{type(pipe).__name__} has no `transformer`; cachesmith caches diffusion transformers"
        )
    if scheduler is None:
        raise PolicyError("a bare transformer tells nothing of the steps; pass scheduler=")
    return transformer, scheduler
