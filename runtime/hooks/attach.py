"""The seam between a transformer and a runner.

Units are routed by replacing `forward` on the module instances that belong to them. A patch was chosen over diffusers'
`ModelHook`s because a unit spans several modules with one decision, because modules below a block are no hook targets
there, and because most pipelines open no cache context. Everything is put back on exit; the modules' classes,
parameters and state dicts are never touched.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from cachesmith.policies import PolicyError
from cachesmith.runtime.guidance import Halves
from cachesmith.runtime.hooks.arguments import reader
from cachesmith.runtime.hooks.clock import Clock
from cachesmith.runtime.hooks.patch import patched
from cachesmith.runtime.hooks.runner import Computer, Foreseeing, Runner
from cachesmith.runtime.hooks.unit_call import Call, Forward, Scope
from cachesmith.runtime.models.adapters import adapter_for
from cachesmith.runtime.models.units import IMAGE, Unit

_MARK = "_cachesmith_session"


@contextmanager
def attach(
    transformer: nn.Module,
    units: tuple[Unit, ...],
    runner: Runner,
    clock: Clock,
    computer: Computer | None = None,
) -> Iterator[None]:
    """Route every unit call of `transformer` through `runner` until the context is left.

    computer: what computes the units that are to be computed; by default, their own modules.

    Raises `PolicyError` if another session is attached to the same transformer.
    """
    if _MARK in vars(transformer):
        raise PolicyError("this transformer already runs under a policy; leave that context first")
    scope = Scope(_guided(runner, units), clock, computer)
    with ExitStack() as stack:
        stack.enter_context(patched(transformer, _MARK, runner))
        stack.enter_context(_watch(transformer, scope))
        for unit in units:
            call = Call(unit, scope)
            for position, module in enumerate(unit.members):
                stack.enter_context(_patch_call(module, call.member(position)))
        yield


def clock_for(transformer: nn.Module) -> Clock:
    """Return a clock that reads `transformer`'s timestep argument."""
    adapter = adapter_for(transformer)
    return Clock(adapter.timestep_scale, adapter.timestep_shift)


def _guided(runner: Runner, units: tuple[Unit, ...]) -> Runner | Halves:
    """Show `runner` the halves of guidance, if one of them is a unit of its own."""
    following = next((unit for unit in units if unit.follower is not None), None)
    if following is None:
        return runner
    assert isinstance(runner, Foreseeing), "only runners that know what they compute can follow halves"
    return Halves(runner, following)


@contextmanager
def _watch(transformer: Any, scope: Scope) -> Iterator[None]:
    """Tell the runner of every call. Hooks, since CPU offloading replaces `forward` after each pipeline call."""
    read = reader(transformer, (adapter_for(transformer).timestep, IMAGE))

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        timestep, latents = read(args, kwargs)
        tick = scope.clock.tick(timestep)
        if isinstance(scope.runner, Halves):
            scope.runner.begin(tick, latents)
        else:
            scope.runner.begin(tick)
        scope.open = True

    def after(*_: Any) -> None:
        scope.open = False

    with ExitStack() as stack:
        stack.callback(transformer.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(transformer.register_forward_hook(after, always_call=True).remove)
        if hasattr(transformer, "cache_context"):
            named = _named(transformer.cache_context, scope.clock)
            stack.enter_context(patched(transformer, "cache_context", named))
        yield


def _named(original: Forward, clock: Clock) -> Forward:
    """Let the pipeline's own `cache_context("cond")` name the guidance branch."""

    @contextmanager
    def cache_context(name: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with original(name, *args, **kwargs) as value:
            before, clock.context = clock.context, name
            try:
                yield value
            finally:
                clock.context = before

    return cache_context


def _patch_call(module: nn.Module, wrap: Callable[[Forward], Forward]) -> AbstractContextManager[None]:
    """Wrap the compiled call of a compiled module, else its forward."""
    compiled = getattr(module, "_compiled_call_impl", None)
    if compiled is None:
        return patched(module, "forward", wrap(module.forward))
    eager: Any = torch.compiler.disable
    return patched(module, "_compiled_call_impl", eager(wrap(compiled), recursive=False))
