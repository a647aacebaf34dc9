"""Record what each part is given, and what torch makes of it, at every step of real sampling runs."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cachesmith.export.parts import Part, part_unit
from cachesmith.policies import EngineError
from cachesmith.runtime import COMPUTE_ALL, Answer, Feature, Tick, Unit, UnitCall, UnitResult, attach
from cachesmith.runtime.hooks.attach import clock_for
from cachesmith.runtime.models.engine_segment import Interface, flatten, ports_for, segment_interface
from cachesmith.runtime.models.units import NetworkUnit


class Sample(NamedTuple):
    """One call of a part, on the host: flat inputs by name, outputs in the interface's order."""

    step: int
    inputs: dict[str, Tensor]
    outputs: Feature


class Tape:
    """Runner and backend at once: it computes nothing, forecasts nothing and keeps copies of everything."""

    def __init__(self, interfaces: Mapping[str, Interface]):
        self.interfaces = interfaces
        self.samples: dict[str, list[Sample]] = {name: [] for name in interfaces}
        self._step = 0
        self._inputs: dict[str, dict[str, Tensor]] = {}

    def begin(self, tick: Tick) -> None:
        """Note the step."""
        if tick.step is None:
            raise EngineError(
                "the pipeline uses timesteps that its scheduler does not list; this cannot be recorded"
            )
        self._step = tick.step

    def answer(self, call: UnitCall) -> Answer:
        """Forecast nothing."""
        return COMPUTE_ALL

    def compute(self, unit: Unit, arguments: Mapping[str, Any]) -> Feature | None:
        """Keep the inputs and leave the computing to torch."""
        face = self.interfaces[unit.name]
        values = {**{s: arguments[s] for s in face.streams}, **flatten(face.conditions, arguments)}
        self._inputs[unit.name] = {name: _copy(values[name]) for name in face.inputs}
        return None

    def observe(self, result: UnitResult) -> None:
        """Keep the outputs."""
        outputs, name = tuple(_copy(value) for value in result.outputs), result.unit.name
        self.samples[name].append(Sample(self._step, self._inputs.pop(name), outputs))

    def end(self, output: Tensor) -> bool:
        """The call is over."""
        return False


def interface_of(transformer: nn.Module, part: Part) -> Interface:
    """Return a part's flat inputs and outputs."""
    if part.module is None:
        return segment_interface(transformer, part.start, part.stop)
    unit = part_unit(transformer, part)
    parameters = inspect.signature(unit.members[0].forward).parameters
    conditions = tuple(c for c in ports_for(transformer).conditions if c.argument in parameters)
    return Interface(unit.streams, unit.streams, conditions)


def record(
    transformer: nn.Module, scheduler: Any, parts: tuple[Part, ...], sample: Callable[[], None]
) -> dict[str, list[Sample]]:
    """Call `sample` with every part watched; return each part's calls by its name."""
    units = [part_unit(transformer, part) for part in parts]
    renamed = tuple(_renamed(unit, part) for unit, part in zip(units, parts, strict=True))
    tape = Tape({part.name: interface_of(transformer, part) for part in parts})
    clock = clock_for(transformer)
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(clock.follow(scheduler))
        stack.enter_context(attach(transformer, renamed, tape, clock, tape))
        sample()
    return tape.samples


def _renamed(unit: NetworkUnit, part: Part) -> NetworkUnit:
    return replace(unit, name=part.name)


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
