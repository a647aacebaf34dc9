"""The seam between a transformer and a runner.

Units are routed by replacing `forward` on the module instances that belong to them. A patch was chosen over diffusers'
`ModelHook`s because a unit spans several modules with one decision, because modules below a block are no hook targets
there, and because most pipelines open no cache context. Everything is put back on exit; the modules' classes,
parameters and state dicts are never touched.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cachesmith.policies import PolicyError
from cachesmith.runtime.hooks.arguments import reader
from cachesmith.runtime.hooks.clock import Clock
from cachesmith.runtime.hooks.patch import patched
from cachesmith.runtime.hooks.runner import Runner, UnitBackend
from cachesmith.runtime.hooks.unit_call import Forward, TransformerCall, UnitState
from cachesmith.runtime.models.adapters import adapter_for
from cachesmith.runtime.models.units import IMAGE, Unit, network_units

_MARK = "_cachesmith_session"


@contextmanager
def attach(
    transformer: nn.Module,
    units: tuple[Unit, ...],
    runner: Runner,
    clock: Clock,
    backend: UnitBackend | None = None,
) -> Iterator[None]:
    """Route every unit call of `transformer` through `runner` until the context is left.

    backend: what computes the units that are to be computed; by default, their own modules.

    Raises `PolicyError` if another session is attached to the same transformer.
    """
    if _MARK in vars(transformer):
        raise PolicyError("this transformer already runs under a policy; leave that context first")
    call = TransformerCall(runner, clock, backend)
    with ExitStack() as stack:
        stack.enter_context(patched(transformer, _MARK, runner))
        stack.enter_context(_watch_calls(transformer, call))
        for unit in network_units(units):
            state = UnitState(unit, call)
            for position, module in enumerate(unit.members):
                stack.enter_context(_patch_call(module, state.member(position)))
        yield


def clock_for(transformer: nn.Module) -> Clock:
    """Return a clock that reads `transformer`'s timestep argument."""
    adapter = adapter_for(transformer)
    return Clock(adapter.timestep_scale, adapter.timestep_shift)


@contextmanager
def _watch_calls(transformer: Any, call: TransformerCall) -> Iterator[None]:
    """Tell the runner of every call. Hooks, since CPU offloading replaces `forward` after each pipeline call."""
    read = reader(transformer, (adapter_for(transformer).timestep, IMAGE))

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        timestep, latents = read(args, kwargs)
        tick = call.clock.tick(timestep)
        call.begin(replace(tick, latents=latents if isinstance(latents, Tensor) else None))

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """`output` is None where the call failed."""
        call.open = False
        sample = _first_tensor(output)
        if sample is None or not call.runner.end(sample):
            return None
        call.open = True
        try:
            again = module.forward(*args, **kwargs)
        finally:
            call.open = False
        call.runner.end(_first_tensor(again))
        return again

    with ExitStack() as stack:
        stack.callback(transformer.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(transformer.register_forward_hook(after, with_kwargs=True, always_call=True).remove)
        if hasattr(transformer, "cache_context"):
            named = _named(transformer.cache_context, call.clock)
            stack.enter_context(patched(transformer, "cache_context", named))
        yield


def _first_tensor(output: Any) -> Any:
    """The transformer's prediction: alone, first of a tuple or output object, or of a list of samples."""
    while isinstance(output, dict | tuple | list) and output:
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output if isinstance(output, Tensor) else None


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
