"""The seam between a transformer and a runner.

Units are routed by replacing `forward` on the module instances that belong to them. A patch was chosen over diffusers'
`ModelHook`s because a unit spans several modules with one decision, because modules below a block are no hook targets
there, and because most pipelines open no cache context. Everything is put back on exit; the modules' classes,
parameters and state dicts are never touched.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial, wraps
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cachesmith.policies import PolicyError
from cachesmith.runtime.adapters import adapter_for
from cachesmith.runtime.clock import Clock, Tick
from cachesmith.runtime.patch import patched
from cachesmith.runtime.peek import peek
from cachesmith.runtime.refresh import Partial
from cachesmith.runtime.units import Unit

Feature = tuple[Tensor, ...]
"""One tensor per stream."""

Forward = Callable[..., Any]
_MARK = "_cachesmith_session"


@runtime_checkable
class Runner(Protocol):
    """Whoever watches or replaces unit calls: `Session`, `Recorder`, `Stopwatch`."""

    def begin(self, tick: Tick) -> None:
        """The transformer is called for `tick`."""

    def forecast(self, unit: Unit, inputs: Feature) -> Feature | Partial | None:
        """Return the unit's output without computing it, some tokens of it to compute, or None to have it computed."""

    def observe(self, unit: Unit, inputs: Feature, outputs: Feature) -> None:
        """The unit was computed."""


@runtime_checkable
class Onlooker(Protocol):
    """A runner that may want to see the modulated input of a run of blocks, although it is forecast."""

    def offer(self, unit: Unit, modulated: Callable[[], Tensor]) -> None:
        """`forecast` is about to be called for `unit`; until then, `modulated()` makes its modulated input."""


@runtime_checkable
class Computer(Protocol):
    """Computes units in the modules' place: `BoundEngines`."""

    def compute(self, unit: Unit, arguments: Mapping[str, Any]) -> Feature | None:
        """Return the unit's output for its first member's arguments, or None to have the modules compute it."""


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
    scope = _Scope(runner, clock, computer)
    with ExitStack() as stack:
        stack.enter_context(patched(transformer, _MARK, runner))
        stack.enter_context(_watch(transformer, scope))
        for unit in units:
            call = _Call(unit, scope)
            for position, module in enumerate(unit.members):
                stack.enter_context(_patch_call(module, call.member(position)))
        yield


def clock_for(transformer: nn.Module) -> Clock:
    """Return a clock that reads `transformer`'s timestep argument."""
    adapter = adapter_for(transformer)
    return Clock(adapter.timestep_scale, adapter.timestep_shift)


class _Scope:
    """The transformer call in progress; units called outside of one are left alone."""

    def __init__(self, runner: Runner, clock: Clock, computer: Computer | None):
        self.runner, self.clock, self.computer = runner, clock, computer
        self.onlooker = runner if isinstance(runner, Onlooker) else None
        self.open = False


@contextmanager
def _watch(transformer: Any, scope: _Scope) -> Iterator[None]:
    """Tell the runner of every call. Hooks, since CPU offloading replaces `forward` after each pipeline call."""
    read = _reader(transformer, (adapter_for(transformer).timestep,))

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        scope.runner.begin(scope.clock.tick(read(args, kwargs)[0]))
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


class _Call:
    """One unit's call in progress: from its first member's arguments to its last member's result.

    A unit whose first member is left out, as skip-layer guidance does, is not begun, and its members are left alone.
    """

    def __init__(self, unit: Unit, scope: _Scope):
        self.unit, self.scope = unit, scope
        self.enters = None if unit.entry is None else _entering(*unit.entry)
        self.begun = False
        self.inputs: Feature = ()
        self.known: Feature | Partial | None = None

    def member(self, position: int) -> Callable[[Forward], Forward]:
        """Return the wrapper of the member at `position`."""
        first, last = position == 0, position == len(self.unit.members) - 1

        def wrap(original: Forward) -> Forward:
            read = _reader(self.unit.members[position], self.unit.reads[position])
            name = _namer(self.unit.members[position], self.unit.reads[position])
            write = _writer(self.unit.members[position], self.unit.reads[position])

            @wraps(original)
            def forward(*args: Any, **kwargs: Any) -> Any:
                if not self.scope.open:
                    return original(*args, **kwargs)
                if first:
                    self.offer(partial(original, *args, **kwargs))
                    self.begin(read(args, kwargs))
                    self.engage(name(args, kwargs))
                if not self.begun:
                    return original(*args, **kwargs)
                if self.known is None:
                    result = original(*args, **kwargs)
                    return self.observe(result) if last else result
                if isinstance(self.known, Partial):
                    args, kwargs = write(args, kwargs, self.known.inputs)
                    self.known = self.known.complete((original(*args, **kwargs),))
                return self.finish(read(args, kwargs)) if last else self.bypass(read(args, kwargs))

            return forward

        return wrap

    def offer(self, call: Callable[[], Any]) -> None:
        """Have the modulated input made, should the runner ask for it."""
        if self.scope.onlooker is not None and self.enters is not None:
            self.scope.onlooker.offer(self.unit, partial(self.enters, call))

    def begin(self, values: tuple[Any, ...]) -> None:
        self.inputs = (torch.cat(values, dim=1),) if self.unit.joined else self.select(values, 0)
        self.known = self.scope.runner.forecast(self.unit, self.inputs)
        self.begun = True

    def engage(self, arguments: Mapping[str, Any]) -> None:
        """Unless the unit was forecast, let the computer have it."""
        if self.known is None and self.scope.computer is not None:
            self.known = known = self.scope.computer.compute(self.unit, arguments)
            if known is not None:
                self.scope.runner.observe(self.unit, self.inputs, known)

    def select(self, values: tuple[Any, ...], position: int) -> Feature:
        by_name = dict(zip(self.unit.reads[position], values, strict=True))
        return tuple(by_name[stream] for stream in self.unit.streams)

    def observe(self, result: Any) -> Any:
        values = result if isinstance(result, tuple) else (result,)
        outputs = self.select(values, -1) if self.unit.residual else values
        self.scope.runner.observe(self.unit, self.inputs, outputs)
        self.begun, self.inputs = False, ()
        return result

    def bypass(self, values: tuple[Any, ...]) -> Any:
        """A block passes its streams on; a submodule returns nothing worth computing with: zero channels."""
        return _returned(values if self.unit.residual else tuple(v[..., :0] for v in values))

    def finish(self, values: tuple[Any, ...]) -> Any:
        assert isinstance(self.known, tuple)
        known, self.known, self.begun, self.inputs = self.known, None, False, ()
        if not self.unit.residual:
            return _returned(known)
        by_name = dict(zip(self.unit.streams, known, strict=True))
        return _returned(tuple(by_name.get(n, v) for n, v in zip(self.unit.reads[-1], values, strict=True)))


def _entering(module: nn.Module, name: str) -> Callable[[Callable[[], Any]], Tensor]:
    """Return a function that makes a block's call until it comes to `module`, and gives its argument `name`."""
    read = _reader(module, (name,))
    return lambda call: peek(module, lambda args, kwargs: read(args, kwargs)[0], call)


def _returned(values: tuple[Any, ...]) -> Any:
    return values[0] if len(values) == 1 else values


def _namer(module: nn.Module, names: tuple[str, ...]) -> Callable[..., dict[str, Any]]:
    """Return a function that gives a call's arguments their names; the first has the unknown one of `names`."""
    parameters = _parameters(module)
    first = next((n for n in names if n not in parameters), parameters[0])

    def name(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        given = {**dict(zip(parameters, args, strict=False)), **kwargs}
        return {first if n == parameters[0] else n: value for n, value in given.items()}

    return name


def _parameters(module: nn.Module) -> list[str]:
    return list(inspect.signature(getattr(module, "_orig_mod", module).forward).parameters)


def _reader(module: nn.Module, names: tuple[str, ...]) -> Callable[..., tuple[Any, ...]]:
    """Return a function that picks the arguments `names` out of a call; an unknown name means the first one."""
    places = _places(module, names)

    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(kwargs[n] if n in kwargs else args[i] for n, i in places)

    return read


def _writer(
    module: nn.Module, names: tuple[str, ...]
) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return a function that puts other values in the place of what `_reader` reads."""
    places = _places(module, names)

    def write(
        args: tuple[Any, ...], kwargs: dict[str, Any], values: Feature
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        placed, named = [*args], {**kwargs}
        for (name, index), value in zip(places, values, strict=True):
            if name in kwargs:
                named[name] = value
            else:
                placed[index] = value
        return tuple(placed), named

    return write


def _places(module: nn.Module, names: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    parameters = _parameters(module)
    known = tuple(n if n in parameters else parameters[0] for n in names)
    return tuple((n, parameters.index(n)) for n in known)
