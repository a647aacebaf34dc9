"""One unit's call, from its first member's arguments to its last member's result."""

import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from cachesmith.policies import EngineError
from cachesmith.runtime.forecast.history import Feature
from cachesmith.runtime.forecast.token_refresh import Partial
from cachesmith.runtime.guidance import Half, Halves
from cachesmith.runtime.hooks.arguments import mapper, namer, reader, writer
from cachesmith.runtime.hooks.clock import Clock
from cachesmith.runtime.hooks.modulated_input import peek
from cachesmith.runtime.hooks.runner import Computer, Onlooker, Runner
from cachesmith.runtime.models.units import Unit

Forward = Callable[..., Any]

PATIENCE = 0.1
"""Seconds after which it is asked again whether a call is still in progress."""


class Scope:
    """The transformer call in progress; units called outside of one are left alone."""

    def __init__(self, runner: Runner | Halves, clock: Clock, computer: Computer | None):
        self.runner, self.clock, self.computer = runner, clock, computer
        self.onlooker = runner if isinstance(runner, Onlooker) else None
        self.thread: int | None = None
        self.number = 0
        self._free = threading.Condition()

    @property
    def open(self) -> bool:
        """Whether a transformer call is in progress on this thread."""
        return self.thread == threading.get_ident()

    def enter(self, transformer: nn.Module, wait: bool) -> bool:
        """A transformer call begins on this thread; while another thread's is in progress, wait or return False."""
        with self._free:
            while self.thread is not None and not self.open and _calls(self.thread, transformer):
                if not wait:
                    return False
                self._free.wait(PATIENCE)
            self.thread = threading.get_ident()
            self.number += 1
            return True

    def leave(self) -> None:
        """The transformer call is over."""
        if self.open:
            with self._free:
                self.thread = None
                self._free.notify_all()


def _calls(thread: int, module: nn.Module) -> bool:
    """Whether `thread` is in a call of `module`: a call that was stopped by the keyboard did not say so."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_name == "_call_impl" and frame.f_locals.get("self") is module:
            return True
        frame = frame.f_back
    return False


class Call:
    """One unit's call in progress: from its first member's arguments to its last member's result.

    A unit whose first member is left out, as skip-layer guidance does, is not begun, and its members are left alone.
    """

    def __init__(self, unit: Unit, scope: Scope):
        self.unit, self.scope = unit, scope
        self.enters = None if unit.entry is None else _entering(*unit.entry)
        self._begun = 0
        self.inputs: Feature = ()
        self.known: Feature | Partial | Half | None = None
        self.passed: dict[str, Tensor] | None = None

    @property
    def begun(self) -> bool:
        """Whether the unit was entered in the transformer call in progress: an earlier one may have been stopped."""
        return self._begun == self.scope.number

    def member(self, position: int) -> Callable[[Forward], Forward]:
        """Return the wrapper of the member at `position`."""
        first, last = position == 0, position == len(self.unit.members) - 1

        def wrap(original: Forward) -> Forward:
            read = reader(self.unit.members[position], self.unit.reads[position])
            name = namer(self.unit.members[position], self.unit.reads[position])
            write = writer(self.unit.members[position], self.unit.reads[position])
            change = mapper(self.unit.members[position])

            @wraps(original)
            def forward(*args: Any, **kwargs: Any) -> Any:
                if not self.scope.open:
                    return original(*args, **kwargs)
                if first:
                    self._offer(partial(original, *args, **kwargs))
                    self._begin(read(args, kwargs))
                    self._engage(name(args, kwargs))
                if not self.begun:
                    return original(*args, **kwargs)
                if not isinstance(self.known, tuple | Partial):
                    args, kwargs = self._taken(args, kwargs, change, read)
                    result = original(*args, **kwargs)
                    return self._computed(result) if last else result
                if isinstance(self.known, Partial):
                    args, kwargs = write(args, kwargs, self.known.inputs)
                    self.known = self.known.complete((original(*args, **kwargs),))
                values = read(args, kwargs)
                self._unchanged(position, values)
                return self._finish(values) if last else self._bypass(position, values)

            return forward

        return wrap

    def _offer(self, call: Callable[[], Any]) -> None:
        """Have the modulated input made, should the runner ask for it."""
        if self.scope.onlooker is not None and self.enters is not None:
            self.scope.onlooker.offer(self.unit, partial(self.enters, call))

    def _begin(self, values: tuple[Any, ...]) -> None:
        self.passed = None
        inputs = (torch.cat(values, dim=1),) if self.unit.joined else self._select(values, 0)
        # Embedders hand over transposed views; mixed layouts would make every later sum several times slower.
        self.inputs = tuple(stream.contiguous() for stream in inputs)
        self.known = self.scope.runner.forecast(self.unit, self.inputs)
        self._begun = self.scope.number

    def _engage(self, arguments: Mapping[str, Any]) -> None:
        """Unless the unit was forecast, let the computer have it."""
        if self.scope.computer is None or isinstance(self.known, tuple | Partial):
            return
        half = self.known
        if half is not None:
            arguments = {name: half.take(name, value) for name, value in arguments.items()}
        made = self.scope.computer.compute(self.unit, arguments)
        if made is None:
            return
        self.passed = {}
        if half is not None:
            self.known = half.complete(made)
        else:
            self.known = made
            self.scope.runner.observe(self.unit, self.inputs, made)

    def _unchanged(self, position: int, values: tuple[Any, ...]) -> None:
        """A computer took all blocks in one go: raise `EngineError` where the transformer works between them."""
        if not self.passed:
            return
        by_name = dict(zip(self.unit.reads[position], values, strict=True))
        if any(by_name.get(name, value) is not value for name, value in self.passed.items()):
            raise EngineError(
                f"the transformer does something between the blocks of {self.unit.name}, as for a ControlNet, which "
                "engines would leave out; run without the bundle"
            )

    def _select(self, values: tuple[Any, ...], position: int) -> Feature:
        by_name = dict(zip(self.unit.reads[position], values, strict=True))
        return tuple(by_name[stream] for stream in self.unit.streams)

    def _taken(self, args: Any, kwargs: Any, change: Forward, read: Forward) -> tuple[Any, Any]:
        """What a member is called with: for the batch, or for the half of it that is to be computed."""
        if isinstance(self.known, Half):
            args, kwargs = change(args, kwargs, self.known.take)
            self.known.check(read(args, kwargs))
        return args, kwargs

    def _computed(self, result: Any) -> Any:
        """The last member has computed the unit, or half of the batch."""
        values = result if isinstance(result, tuple) else (result,)
        outputs = self._select(values, -1) if self.unit.residual else values
        if isinstance(self.known, Half):
            self.known = self.known.complete(outputs)
            return self._finish(values)
        self.scope.runner.observe(self.unit, self.inputs, outputs)
        self._begun, self.inputs = 0, ()
        return result

    def _bypass(self, position: int, values: tuple[Any, ...]) -> Any:
        """A block passes its streams on; a submodule returns nothing worth computing with: zero channels."""
        if self.passed is not None:
            self.passed = dict(zip(self.unit.reads[position], values, strict=True))
        return _returned(values if self.unit.residual else tuple(v[..., :0] for v in values))

    def _finish(self, values: tuple[Any, ...]) -> Any:
        assert isinstance(self.known, tuple)
        known, self.known, self._begun, self.inputs, self.passed = self.known, None, 0, (), None
        if not self.unit.residual:
            return _returned(known)
        by_name = dict(zip(self.unit.streams, known, strict=True))
        return _returned(tuple(by_name.get(n, v) for n, v in zip(self.unit.reads[-1], values, strict=True)))


def _entering(module: nn.Module, name: str) -> Callable[[Callable[[], Any]], Tensor]:
    """Return a function that makes a block's call until it comes to `module`, and gives its argument `name`."""
    read = reader(module, (name,))
    return lambda call: peek(module, lambda args, kwargs: read(args, kwargs)[0], call)


def _returned(values: tuple[Any, ...]) -> Any:
    return values[0] if len(values) == 1 else values
