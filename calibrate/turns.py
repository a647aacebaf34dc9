"""The parts of a run: which denoiser is called, and for what, told from a run with no block computed.

A part ends where another denoiser takes over, and where one is called for what it was not called for a step ago: a
branch of guidance that comes on, or another number of rows where both halves were one batch and guidance goes off.
Nothing is known of such a call, so that every part begins with a computed step.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cachesmith.calibrate.closed_loop.replay import replayed
from cachesmith.policies import MAIN, PolicyError, Stack
from cachesmith.runtime import Answer, Tick, UnitCall, UnitResult, UseOutput, Watcher
from cachesmith.runtime.hooks.watch import watch_each
from cachesmith.runtime.models.denoisers import denoisers
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request


class RunPart(NamedTuple):
    """From step `start` on the denoiser of this name is called, always for the same or for less."""

    denoiser: str
    start: int


class _Call(NamedTuple):
    """One call of a step: its branch of guidance, and the shape of what enters the blocks."""

    branch: str
    shape: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Course:
    """How an uncached run goes. parts: in order; calls: per branch of guidance, as `Stats.nfc` counts; steady: whether
    no step makes a call that the first does not make."""

    parts: tuple[RunPart, ...]
    calls: float
    steady: bool


class _Turn(Watcher):
    """Notes the calls of one denoiser by step, and how many each branch has; has no block computed."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[int, set[_Call]] = defaultdict(set)
        self.branches: Counter[str] = Counter()

    def begin(self, tick: Tick) -> None:
        """A transformer call."""
        super().begin(tick)
        self.branches[tick.branch] += 1

    def answer(self, call: UnitCall) -> Answer:
        """Return the inputs."""
        if self._tick.step is not None:
            shape = tuple(tuple(tensor.shape) for tensor in call.inputs)
            self.steps[self._tick.step].add(_Call(self._tick.branch, shape))
        return UseOutput(call.inputs)

    def observe(self, result: UnitResult) -> None:
        """Nothing is computed."""


def course_of(renderer: Renderer, requests: Sequence[Request]) -> Course:
    """How runs of `requests`, one batch, go. Raises `PolicyError` where denoisers do not take turns, or differ in the
    channels of their blocks."""
    pipe = renderer.pipe
    turns = {name: _Turn() for name in denoisers(pipe)}
    with (
        watch_each(pipe, Stack(), lambda name, _: turns[name]),
        replayed(pipe, len(requests), [], renderer.steps),
    ):
        renderer(requests)
    called = {name: turn.steps for name, turn in turns.items() if turn.steps}
    _check_turns(type(pipe).__name__, called, renderer.steps)
    steps = {step: (name, calls) for name, own in called.items() for step, calls in own.items()}
    branches = sum((turn.branches for turn in turns.values()), Counter[str]())
    first = steps[min(steps)][1]
    return Course(
        tuple(_parts(steps)),
        branches.total() / len(branches),
        all(calls <= first for _, calls in steps.values()),
    )


def check_one_course(renderer: Renderer, requests: Sequence[Request]) -> None:
    """Raise `PolicyError` where runs of `requests` are not in the same parts: one of each kind is looked at, where they
    differ in arguments that are fractions."""
    kinds = {_fractions(request): request for request in requests}
    if len(kinds) == 1:
        return
    found = {course_of(renderer, [request]).parts: kind for kind, request in kinds.items()}
    if len(found) == 1:
        return
    (first, one), (second, other), *_ = found.items()
    told = [
        f"with {', '.join(f'{n} {v:g}' for n, v in sorted(apart))}, at step "
        + " and ".join(str(part.start + 1) for part in parts)
        for parts, apart in ((first, one - other), (second, other - one))
    ]
    raise PolicyError(
        "requests begin, or are guided, at other steps, so they cannot be calibrated together: a part of the run "
        f"begins {'; '.join(told)}; give those of one kind, and calibrate once for each"
    )


def _fractions(request: Request) -> frozenset[tuple[str, float]]:
    return frozenset((n, v) for n, v in request.arguments.items() if isinstance(v, float))


def _parts(steps: Mapping[int, tuple[str, set[_Call]]]) -> list[RunPart]:
    parts: list[RunPart] = []
    before: set[_Call] = set()
    for step in sorted(steps):
        name, calls = steps[step]
        if not parts or name != parts[-1].denoiser or not calls <= before:
            parts.append(RunPart(name, step))
        before = calls
    return parts


def _check_turns(kind: str, called: Mapping[str, Mapping[int, set[_Call]]], steps: int) -> None:
    names = sorted(called, key=lambda name: min(called[name]))
    starts = [min(called[name]) for name in names]
    if not names:
        raise PolicyError(
            f"no call of {kind} is at a step of its scheduler; calibrate with another scheduler"
        )
    if len(names) > 1 and [{*called[name]} for name in names] != [
        {*range(a, b)} for a, b in zip(starts, [*starts[1:], steps], strict=True)
    ]:
        raise PolicyError(
            f"{' and '.join(names)} of {kind} do not take turns, one after the other; only denoisers that do can be "
            "calibrated together"
        )
    channels = {
        tuple(shape[-1] for shape in call.shape)
        for own in called.values()
        for calls in own.values()
        for call in calls
    }
    if len(channels) > 1:
        raise PolicyError(
            f"the blocks of {' and '.join(names)} differ in their channels, so they cannot be calibrated together"
        )
    if names[0] != MAIN:
        raise PolicyError(f"{kind} does not begin with {MAIN}, so it cannot be calibrated")
