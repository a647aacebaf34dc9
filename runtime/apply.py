"""`apply`: run a diffusers pipeline, or a bare transformer, under a policy."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from cachesmith.policies import Policy, PolicyError, Profile

from .adapters import adapter_for
from .attach import attach
from .clock import Clock
from .fingerprint import model_key
from .match import check_model, check_scheduler, fit_profile
from .plan import Plan, compile_plan
from .sampler import axis_values, is_flow, noise_levels
from .session import Session
from .units import resolve_units


@contextmanager
def apply(
    pipe: Any,
    policy: Policy,
    profile: str | None = None,
    *,
    scheduler: Any = None,
    memory_budget: int | None = None,
) -> Iterator[Session]:
    """Sample under `policy` until the context is left.

    pipe: a diffusers pipeline with a `transformer`, or a transformer (then pass its `scheduler`).
    profile: a profile of the policy; by default its only one, or `balanced`.
    memory_budget: largest cache in bytes; the first step is refused with the exact figure if it needs more.

    Yields the `Session`, whose `stats` and `plan` tell what happened. Raises `PolicyError` when the policy does not
    fit the model, the sampler or the number of steps.
    """
    transformer, scheduler = _parts(pipe, scheduler)
    chosen = policy.profile(profile)
    enabled = check_model(policy, model_key(transformer, pipe)) and check_scheduler(policy, scheduler)
    units = resolve_units(transformer, chosen.units)
    clock = Clock(scale=adapter_for(transformer).timestep_scale)

    def planner(start: int) -> Plan | None:
        if not enabled:
            return None
        sigmas = noise_levels(scheduler)
        fitted = fit_profile(policy, chosen, sigmas)
        if fitted is None:
            return None
        times = axis_values(fitted.axis, sigmas, is_flow(scheduler))
        return compile_plan(policy, fitted, times, units, start)

    session = Session(planner, memory_budget)
    with ExitStack() as stack:
        stack.enter_context(clock.follow(scheduler))
        stack.enter_context(attach(transformer, units, session, clock))
        yield session


def _parts(pipe: Any, scheduler: Any) -> tuple[nn.Module, Any]:
    transformer = pipe if isinstance(pipe, nn.Module) else getattr(pipe, "transformer", None)
    scheduler = scheduler if scheduler is not None else getattr(pipe, "scheduler", None)
    if transformer is None:
        raise PolicyError(f"{type(pipe).__name__} has no `transformer`; cachesmith caches diffusion transformers")
    if scheduler is None:
        raise PolicyError("a bare transformer tells nothing of the steps; pass scheduler=")
    return transformer, scheduler
