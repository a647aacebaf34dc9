"""The seam between a transformer and a runner.

Units are routed by replacing `forward` on the module instances that belong to them. A patch was chosen over diffusers'
`ModelHook`s because a unit spans several modules with one decision, because modules below a block are no hook targets
there, and because most pipelines open no cache context. Everything is put back on exit; the modules' classes,
parameters and state dicts are never touched.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

from torch import nn

from cachesmith.policies import PolicyError
from cachesmith.runtime.guidance import Halves
from cachesmith.runtime.hooks.arguments import reader
from cachesmith.runtime.hooks.clock import ANOTHER_THREAD, Clock
from cachesmith.runtime.hooks.member_layers import MemberLayers
from cachesmith.runtime.hooks.patch import Layer
from cachesmith.runtime.hooks.runner import Computer, Foreseeing, Runner
from cachesmith.runtime.hooks.unit_call import Forward, Scope
from cachesmith.runtime.models.adapters import adapter_for
from cachesmith.runtime.models.units import IMAGE, Unit

_ATTACHED: "WeakSet[nn.Module]" = WeakSet()


@contextmanager
def attach(
    transformer: nn.Module,
    units: tuple[Unit, ...],
    runner: Runner,
    clock: Clock,
    computer: Computer | None = None,
) -> Iterator[MemberLayers]:
    """Route every unit call of `transformer` through `runner` until the context is left.

    computer: what computes the units that are to be computed; by default, their own modules.

    Yields what can be bound to other units. Raises `PolicyError` if another session is attached to the transformer.
    """
    if transformer in _ATTACHED:
        raise PolicyError("this transformer already runs under a policy; leave that context first")
    scope = Scope(_guided(runner, units), clock, computer)
    layers = MemberLayers(transformer, scope)
    with ExitStack() as stack:
        _ATTACHED.add(transformer)
        stack.callback(_ATTACHED.discard, transformer)
        stack.enter_context(_watch(transformer, scope, layers))
        stack.callback(layers.remove)
        layers.bind(units)
        yield layers


def clock_for(transformer: nn.Module, pipe: Any = None) -> Clock:
    """Return a clock for calls of `transformer`; raise `PolicyError` when there is no adapter for it."""
    adapter_for(transformer)
    return Clock(pipe)


def _guided(runner: Runner, units: tuple[Unit, ...]) -> Runner | Halves:
    """Show `runner` the halves of guidance, if one of them is a unit of its own."""
    following = next((unit for unit in units if unit.follower is not None), None)
    if following is None:
        return runner
    assert isinstance(runner, Foreseeing), "only runners that know what they compute can follow halves"
    return Halves(runner, following)


class _Hook:
    """A hook that stays behind when its module is copied or pickled."""

    def __init__(self, then: Callable[..., None]):
        self._then = then

    def __call__(self, *args: Any) -> None:
        self._then(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _silent

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return _no_hook, ()


def _silent(*_: Any) -> None:
    """What copies of a hook do."""


def _no_hook() -> Callable[..., None]:
    return _silent


@contextmanager
def _watch(transformer: Any, scope: Scope, layers: MemberLayers) -> Iterator[None]:
    """Tell the runner of every call. Hooks, since CPU offloading replaces `forward` after each pipeline call."""
    read = reader(transformer, (adapter_for(transformer).timestep, IMAGE))

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not scope.enter(transformer, wait=not scope.clock.stranger()):
            warnings.warn(f"cachesmith left a call alone: {ANOTHER_THREAD}", RuntimeWarning, stacklevel=2)
            return
        timestep, latents = read(args, kwargs)
        tick = scope.clock.tick(timestep, latents)
        if isinstance(scope.runner, Halves):
            scope.runner.begin(tick, latents)
        else:
            scope.runner.begin(tick)
        layers.refresh()

    def after(*_: Any) -> None:
        scope.leave()

    with ExitStack() as stack:
        stack.callback(transformer.register_forward_pre_hook(_Hook(before), with_kwargs=True).remove)
        stack.callback(transformer.register_forward_hook(_Hook(after), always_call=True).remove)
        if hasattr(transformer, "cache_context"):
            stack.callback(Layer(transformer, "cache_context", _named(scope.clock)).remove)
        yield


def _named(clock: Clock) -> Callable[[Forward], Forward]:
    """Let the pipeline's own `cache_context("cond")` name the guidance branch."""

    def wrap(original: Forward) -> Forward:
        @contextmanager
        def cache_context(name: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
            with original(name, *args, **kwargs) as value:
                before, clock.context = clock.context, name
                try:
                    yield value
                finally:
                    clock.context = before

        return cache_context

    return wrap
