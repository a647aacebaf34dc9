"""One unit's call, from its first member's arguments to its last member's result.

The runner is asked once, at the first member, and its answer decides what every member does: all are called, none is,
or they are called on some tokens or rows.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from cachesmith.policies import EngineError, PolicyError
from cachesmith.runtime.features import Feature
from cachesmith.runtime.hooks.arguments import ArgumentList, mapper, namer, reader, writer
from cachesmith.runtime.hooks.caller import in_call
from cachesmith.runtime.hooks.clock import Clock, Tick
from cachesmith.runtime.hooks.modulated_input import peek
from cachesmith.runtime.hooks.module_calls import Forward
from cachesmith.runtime.hooks.rows import check_rows, take_rows, whole_rows
from cachesmith.runtime.hooks.runner import (
    Answer,
    ComputeAll,
    ComputeRows,
    ComputeTokens,
    Runner,
    UnitBackend,
    UnitCall,
    UnitResult,
    UseOutput,
)
from cachesmith.runtime.models.units import BlockRun, NetworkUnit

Foresees = Callable[[], bool]
"""Whether all blocks of the call that has just begun are going to be forecast."""

PATIENCE = 0.1
"""Seconds after which it is asked again whether a call is still in progress."""


class TransformerCall:
    """The transformer call in progress; units called outside of one are left alone."""

    def __init__(
        self, runner: Runner, clock: Clock, backend: UnitBackend | None, foresees: Foresees | None = None
    ):
        self.runner, self.clock, self.backend = runner, clock, backend
        self.foresees = foresees
        self.unit: UnitState | None = None
        # idle lists are passed by in this call; what came of it counts for nothing
        self.idles, self.void = False, False
        self._thread: int | None = None
        self._free = threading.Condition()

    @property
    def open(self) -> bool:
        """Whether a transformer call is in progress on this thread."""
        return self._thread == threading.get_ident()

    def enter(self, transformer: nn.Module, waits: Callable[[], bool]) -> bool:
        """A transformer call begins on this thread; while another thread's is in progress, wait or return False."""
        with self._free:
            # a call that was stopped by the keyboard did not say so
            while self._thread is not None and not self.open and in_call(transformer, self._thread):
                if not waits():
                    return False
                self._free.wait(PATIENCE)
            self._thread = threading.get_ident()
            return True

    def leave(self) -> None:
        """The transformer call is over, and nothing of it is held on to."""
        if self.open:
            self._forget()
            with self._free:
                self._thread = None
                self._free.notify_all()

    def begin(self, tick: Tick) -> None:
        """The transformer is called; what an interrupted call left behind is forgotten."""
        self._forget()
        self.runner.begin(tick)
        self.idles, self.void = self.foresees is not None and self.foresees(), False

    def _forget(self) -> None:
        if self.unit is not None:
            self.unit.forget()


class Member(NamedTuple):
    """One module of a unit: its own forward, and how its arguments are read, written and changed."""

    position: int
    last: bool
    original: Forward
    read: Callable[..., tuple[Any, ...]]
    write: Callable[..., ArgumentList]
    change: Callable[..., ArgumentList]


class UnitState:
    """One unit's call in progress.

    A unit whose first member is left out, as skip-layer guidance does, is not begun, and its members are left alone.
    """

    def __init__(self, unit: NetworkUnit, call: TransformerCall):
        self.unit, self.call = unit, call
        self._name = namer(unit.members[0], unit.reads[0])
        entry = unit.entry if isinstance(unit, BlockRun) else None
        self._modulated = None if entry is None else _entering(*entry)
        self.inputs: Feature = ()
        self.answer: Answer | None = None
        # what a backend's caller handed to the members it replaced: must stay the same objects
        self.passed: dict[str, Tensor] | None = None

    def member(self, position: int) -> Callable[[Forward], Forward]:
        """Return the wrapper of the member at `position`."""
        module, names = self.unit.members[position], self.unit.reads[position]
        last = position == len(self.unit.members) - 1

        def wrap(original: Forward) -> Forward:
            member = Member(
                position, last, original, reader(module, names), writer(module, names), mapper(module)
            )

            def forward(*args: Any, **kwargs: Any) -> Any:
                if not self.call.open:
                    return original(*args, **kwargs)
                if position == 0:
                    self._begin(member, args, kwargs)
                return self._member_called(member, args, kwargs)

            return forward

        return wrap

    def _begin(self, member: "Member", args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # embedders hand over transposed views; mixed layouts would make every later sum several times slower
        self.inputs = tuple(stream.contiguous() for stream in self.unit.entering(member.read(args, kwargs)))
        self.passed, self.call.unit = None, self
        modulated = None
        if self._modulated is not None:
            modulated = partial(self._modulated, partial(member.original, *args, **kwargs))
        self.answer = self.call.runner.answer(UnitCall(self.unit, self.inputs, modulated))
        if self.call.idles and not isinstance(self.answer, UseOutput):
            # it was foreseen otherwise, and what idle lists make is needed after all: the call is made again
            self.call.void, self.answer = True, UseOutput(self.inputs)
        if self.call.backend is not None and isinstance(self.answer, ComputeAll | ComputeRows):
            self._use_backend(self.call.backend, self._name(args, kwargs))

    def _member_called(self, member: "Member", args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        match self.answer:
            case None:
                return member.original(*args, **kwargs)
            case ComputeAll():
                result = member.original(*args, **kwargs)
                return self._computed(result) if member.last else result
            case ComputeRows() as part:
                args, kwargs = member.change(args, kwargs, partial(take_rows, part))
                check_rows(part, member.read(args, kwargs))
                result = member.original(*args, **kwargs)
                return self._rows_computed(part, result) if member.last else whole_rows(result)
            case ComputeTokens() as part:
                args, kwargs = member.write(args, kwargs, part.inputs)
                return self._finish((), part.complete((member.original(*args, **kwargs),)))
            case UseOutput(output):
                values = member.read(args, kwargs)
                self._check_passed(member.position, values)
                return self._finish(values, output) if member.last else self._bypass(member.position, values)

    def _use_backend(self, backend: UnitBackend, arguments: dict[str, Any]) -> None:
        """Have the backend compute what is to be computed, if it can."""
        part = self.answer
        if isinstance(part, ComputeRows):
            arguments = {name: take_rows(part, name, value) for name, value in arguments.items()}
        outputs = backend.compute(self.unit, arguments)
        if outputs is None:
            return
        self.passed = {}
        if isinstance(part, ComputeRows):
            self.answer = UseOutput(part.complete(outputs))
        else:
            self.call.runner.observe(UnitResult(self.unit, self.inputs, outputs))
            self.answer = UseOutput(outputs)

    def _check_passed(self, position: int, values: tuple[Any, ...]) -> None:
        """A backend computed all blocks in one go: raise `EngineError` where the transformer works between them."""
        if not self.passed:
            return
        by_name = dict(zip(self.unit.reads[position], values, strict=True))
        if any(by_name.get(name, value) is not value for name, value in self.passed.items()):
            raise EngineError(
                f"the transformer does something between the blocks of {self.unit.name}, as for a ControlNet, which "
                "engines would leave out; run without the bundle"
            )

    def _computed(self, result: Any) -> Any:
        self.call.runner.observe(UnitResult(self.unit, self.inputs, self._outputs(_values(result))))
        self.forget()
        return result

    def _rows_computed(self, part: ComputeRows, result: Any) -> Any:
        values = _values(result)
        output = part.complete(self._outputs(values))
        return self._finish(whole_rows(values), output)  # streams that nobody caches are read all the same

    def _outputs(self, values: tuple[Any, ...]) -> Feature:
        unit = self.unit
        if not isinstance(unit, BlockRun):
            return values  # another number of them is counted and computed by whoever observes
        names = unit.reads[-1]
        if len(values) != len(names):
            raise PolicyError(
                f"{unit.name} returns {len(values)} tensors where the adapter names {len(names)} streams "
                f"({', '.join(names)}); name what it returns, in its order"
            )
        return unit.select(values, -1)

    def _bypass(self, position: int, values: tuple[Any, ...]) -> Any:
        """A block passes its streams on; a submodule returns nothing worth computing with: zero channels."""
        if self.passed is not None:
            self.passed = dict(zip(self.unit.reads[position], values, strict=True))
        is_block = isinstance(self.unit, BlockRun)
        return _returned(values if is_block else tuple(v[..., :0] for v in values))

    def _finish(self, values: tuple[Any, ...], output: Feature) -> Any:
        """The last member returns the unit's output in place of `values`, its streams."""
        self.forget()
        if not isinstance(self.unit, BlockRun):
            return _returned(output)
        by_name = dict(zip(self.unit.streams, output, strict=True))
        names = self.unit.reads[-1]
        return _returned(tuple(by_name.get(n, v) for n, v in zip(names, values, strict=True)))

    def forget(self) -> None:
        """The call is over."""
        self.answer, self.inputs, self.passed = None, (), None


def _entering(module: Any, name: str) -> Callable[[Callable[[], Any]], Tensor]:
    """Return a function that makes a block's call until it comes to `module`, and gives its argument `name`."""
    read = reader(module, (name,))
    return lambda call: peek(module, lambda args, kwargs: read(args, kwargs)[0], call)


def _values(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _returned(values: tuple[Any, ...]) -> Any:
    return values[0] if len(values) == 1 else values
