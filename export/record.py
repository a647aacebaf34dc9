"""Record what each part is given, and what torch makes of it, at every step of real sampling runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cachesmith.export.axes import at_one_size, axes_of
from cachesmith.export.parts import Part, part_streams, part_unit
from cachesmith.policies import EngineError
from cachesmith.runtime import Feature
from cachesmith.runtime.hooks.arguments import argument_names
from cachesmith.runtime.hooks.module_calls import own_calls_wrapped
from cachesmith.runtime.hooks.patch import heard
from cachesmith.runtime.models.engine_segment import (
    Arguments,
    Interface,
    constants,
    real,
    slots_in,
    template,
    tensors,
)


class PartCall(NamedTuple):
    """One call of a part, on the host: flat inputs by name, outputs in the interface's order. `templates` say how the
    inputs make up the members' arguments."""

    step: int
    inputs: dict[str, Tensor]
    outputs: Feature
    templates: tuple[Arguments, ...]


@dataclass(eq=False)
class Tape:
    """Keeps copies of everything that one part is given and returns; computes nothing."""

    part: Part
    streams: tuple[str, ...]
    returns: tuple[str, ...]
    outputs: tuple[str, ...]
    samples: list[PartCall] = field(default_factory=list)
    _inputs: dict[str, Tensor] = field(default_factory=dict)
    _templates: list[Arguments] = field(default_factory=list)
    _shared: dict[str, Tensor] = field(default_factory=dict)

    def enter(self, member: int, own: dict[str, str], given: dict[str, Any]) -> None:
        """A member is called; `own` are its names of the streams."""
        if member == 0:
            self._templates, self._shared = [], {}
            self._inputs = {stream: _copy(given[name]) for stream, name in own.items()}
        rest = {name: value for name, value in given.items() if name not in own.values()}
        if member == 0:
            self._shared = {k: v for name, value in rest.items() for k, v in tensors(name, value).items()}
        made = {name: template(name, value, self._shared, member) for name, value in rest.items()}
        for name, value in rest.items():
            constants(name, value)  # refuses what no graph can hold
            for place, tensor in tensors(name, value).items():
                if member == 0:
                    self._inputs[place] = _copy(tensor)
                elif self._shared.get(place) is not tensor:
                    self._inputs[f"{place}:{member}"] = _copy(tensor)
        self._templates.append(made)

    def leave(self, step: int, result: Any) -> None:
        """The last member returned."""
        results = result if isinstance(result, tuple | list) else (result,)
        by_name = dict(zip(self.returns, results, strict=True))
        kept = tuple(_copy(by_name[name]) for name in self.outputs)
        templates = tuple(self._templates)
        if self.samples and self.samples[0].templates != templates:
            raise EngineError(
                f"{self.part.name} is called with other arguments at step {step} than at first, and a graph is made "
                "for one kind of call; export requests that are alike"
            )
        self.samples.append(PartCall(step, self._inputs, kept, templates))
        self._inputs, self._shared = {}, {}


def interface_of(transformer: nn.Module, part: Part, samples: Sequence[PartCall]) -> Interface:
    """Return a part's flat inputs and outputs, from recorded calls of it."""
    streams, returns, outputs = part_streams(transformer, part)
    shapes = [_shapes(each) for each in samples]
    face = Interface(streams, outputs, returns, samples[0].templates, {})
    sized = any(type(value) is int and value > 1 for value in face.constants.values())
    return replace(face, axes=axes_of(streams, shapes, sized))


def at_seen_size(face: Interface, samples: Sequence[PartCall]) -> Interface:
    """The same interface for one number of tokens, where all calls had that; else unchanged."""
    return replace(face, axes=at_one_size(face.axes, [_shapes(each) for each in samples]))


def _shapes(call: PartCall) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in call.inputs.items()}


def check_shared(part: Part, face: Interface) -> None:
    """Raise `EngineError` where blocks are each given something else: engines are only given what the first one is."""
    own = next((name for name in face.inputs if ":" in name), None)
    if own is not None:
        _refuse_own(part.name, own.partition(":")[0])


def check_alike(recorded: Mapping[str, Sequence[PartCall]], parts: Sequence[Part]) -> None:
    """Raise `EngineError` where parts that may follow each other are given different tensors under one name."""
    first: dict[str, list[Tensor]] = {}
    for part in parts:
        if part.module is not None:
            continue
        slots = {
            name for t in recorded[part.name][0].templates for value in t.values() for name in slots_in(value)
        }
        for name in slots:
            values = [sample.inputs[name] for sample in recorded[part.name]]
            for a, b in zip(first.setdefault(name, values), values, strict=True):
                if a.shape != b.shape or not torch.equal(a, b):
                    _refuse_own(part.name, name)


def _refuse_own(part: str, argument: str) -> None:
    raise EngineError(
        f"not all blocks are given the same `{argument}` (see {part}), and engines are only given what the first block "
        "is; run it in torch"
    )


def record(
    transformer: nn.Module, scheduler: Any, parts: tuple[Part, ...], sample: Callable[[], None]
) -> dict[str, list[PartCall]]:
    """Call `sample` with every part watched; return each part's calls by its name.

    Steps are counted by the scheduler, which may be None where there is none.
    """
    steps = [0]
    tapes = [Tape(part, *part_streams(transformer, part)) for part in parts]
    with ExitStack() as stack, torch.no_grad():
        if scheduler is not None:
            stack.enter_context(heard(scheduler, "set_timesteps", lambda *_, **__: steps.__setitem__(0, 0)))
            stack.enter_context(heard(scheduler, "step", lambda *_, **__: steps.__setitem__(0, steps[0] + 1)))
        for tape in tapes:
            stack.enter_context(_watched(part_unit(transformer, tape.part).members, tape, steps))
        sample()
    return {tape.part.name: tape.samples for tape in tapes}


@contextmanager
def _watched(members: tuple[nn.Module, ...], tape: Tape, steps: list[int]) -> Iterator[None]:
    with ExitStack() as stack:
        for place, member in enumerate(members):
            last = member is members[-1]
            stack.enter_context(own_calls_wrapped(member, partial(_taped, member, place, last, tape, steps)))
        yield


def _taped(
    member: nn.Module, place: int, last: bool, tape: Tape, steps: list[int], original: Callable[..., Any]
) -> Callable[..., Any]:
    names = argument_names(member)
    own = {stream: stream if stream in names else names[0] for stream in tape.streams}

    @wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        tape.enter(place, own, {**dict(zip(names, args, strict=False)), **kwargs})
        result = original(*args, **kwargs)
        if last:
            tape.leave(steps[0], result)
        return result

    return forward


def _copy(value: Tensor) -> Tensor:
    return real(value.detach()).to("cpu", copy=True, memory_format=torch.contiguous_format)
