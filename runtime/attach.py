"""The seam between a transformer and a runner.

Units are routed by replacing `forward` on the module instances that belong to them, and on the transformer itself. A
patch was chosen over diffusers' `ModelHook`s because a unit spans several modules with one decision, because modules
below a block are no hook targets there, and because most pipelines open no cache context. Everything is put back on
exit; the modules' classes, parameters and state dicts are never touched.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cachesmith.policies import PolicyError

from .adapters import adapter_for
from .clock import Clock, Tick
from .patch import patched
from .units import Unit

Feature = tuple[Tensor, ...]
"""One tensor per stream."""

Forward = Callable[..., Any]
_MARK = "_cachesmith_session"


@runtime_checkable
class Runner(Protocol):
    """Whoever watches or replaces unit calls: `Session`, `Recorder`, `Stopwatch`."""

    def begin(self, tick: Tick) -> None:
        """The transformer is called for `tick`."""

    def forecast(self, unit: Unit, inputs: Feature) -> Feature | None:
        """Return the unit's output without computing it, or None to have it computed."""

    def observe(self, unit: Unit, inputs: Feature, outputs: Feature) -> None:
        """The unit was computed."""


@contextmanager
def attach(transformer: nn.Module, units: tuple[Unit, ...], runner: Runner, clock: Clock) -> Iterator[None]:
    """Route every unit call of `transformer` through `runner` until the context is left.

    Raises `PolicyError` if another session is attached to the same transformer.
    """
    if _MARK in vars(transformer):
        raise PolicyError("this transformer already runs under a policy; leave that context first")
    with ExitStack() as stack:
        stack.enter_context(patched(transformer, _MARK, runner))
        stack.enter_context(_route_transformer(transformer, runner, clock))
        for unit in units:
            stack.enter_context(_route_unit(unit, runner))
        yield


@contextmanager
def _route_transformer(transformer: nn.Module, runner: Runner, clock: Clock) -> Iterator[None]:
    name = adapter_for(transformer).timestep
    original = transformer.forward
    read = _reader(original, (name,))

    def forward(*args: Any, **kwargs: Any) -> Any:
        runner.begin(clock.tick(read(args, kwargs)[0]))
        return original(*args, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(patched(transformer, "forward", forward))
        if hasattr(transformer, "cache_context"):
            stack.enter_context(patched(transformer, "cache_context", _named(transformer.cache_context, clock)))
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


def _route_unit(unit: Unit, runner: Runner) -> AbstractContextManager[None]:
    stack = ExitStack()
    call = _Call(unit, runner)
    for position, module in enumerate(unit.members):
        stack.enter_context(_patch_call(module, call.member(position)))
    return _closing(stack)


@contextmanager
def _closing(stack: ExitStack) -> Iterator[None]:
    with stack:
        yield


def _patch_call(module: nn.Module, wrap: Callable[[Forward], Forward]) -> AbstractContextManager[None]:
    """Wrap the compiled call of a compiled module, else its forward."""
    compiled = getattr(module, "_compiled_call_impl", None)
    name, original = ("forward", module.forward) if compiled is None else ("_compiled_call_impl", compiled)
    wrapped = wrap(original)
    return patched(module, name, wrapped if compiled is None else torch.compiler.disable(wrapped, recursive=False))


class _Call:
    """One unit's call in progress: from its first member's arguments to its last member's result."""

    def __init__(self, unit: Unit, runner: Runner):
        self.unit, self.runner = unit, runner
        self.inputs: Feature = ()
        self.forecast: Feature | None = None

    def member(self, position: int) -> Callable[[Forward], Forward]:
        """Return the wrapper of the member at `position`."""
        first, last = position == 0, position == len(self.unit.members) - 1

        def wrap(original: Forward) -> Forward:
            read = _reader(self.unit.members[position].forward, self.unit.reads)

            def forward(*args: Any, **kwargs: Any) -> Any:
                if first:
                    self.begin(read(args, kwargs))
                if self.forecast is None:
                    result = original(*args, **kwargs)
                    return self.observe(result) if last else result
                return self.finish(read, args, kwargs) if last else self.bypass(read, args, kwargs)

            return forward

        return wrap

    def begin(self, values: tuple[Any, ...]) -> None:
        self.inputs = self.select(values)
        self.forecast = self.runner.forecast(self.unit, self.inputs)

    def select(self, values: tuple[Any, ...]) -> Feature:
        return tuple(v for name, v in zip(self.unit.reads, values, strict=True) if name in self.unit.streams)

    def observe(self, result: Any) -> Any:
        values = result if isinstance(result, tuple) else (result,)
        outputs = self.select(values) if self.unit.residual else values[: len(self.unit.streams)]
        self.runner.observe(self.unit, self.inputs, outputs)
        self.inputs = ()
        return result

    def bypass(self, read: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A block passes its streams on; a submodule returns nothing worth computing with: zero channels."""
        values = read(args, kwargs)
        if self.unit.residual:
            return values[0] if len(values) == 1 else values
        return values[0][..., :0]

    def finish(self, read: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        forecast, self.forecast, self.inputs = self.forecast or (), None, ()
        if not self.unit.residual:
            return forecast[0] if len(forecast) == 1 else forecast
        by_name = dict(zip(self.unit.streams, forecast, strict=True))
        values = tuple(by_name.get(n, v) for n, v in zip(self.unit.reads, read(args, kwargs), strict=True))
        return values[0] if len(values) == 1 else values


def _reader(forward: Forward, names: tuple[str, ...]) -> Callable[..., tuple[Any, ...]]:
    """Return a function that picks the arguments `names` out of a call; a lone unknown name means the first one."""
    parameters = list(inspect.signature(forward).parameters)
    known = tuple(n if n in parameters else parameters[0] for n in names)
    places = tuple((n, parameters.index(n)) for n in known)

    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(kwargs[n] if n in kwargs else args[i] for n, i in places)

    return read
