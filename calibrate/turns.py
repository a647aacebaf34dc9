"""The parts of a run: which denoiser is called, and for what, told from a run with no block computed.

A part ends where other denoisers take over, and where one is called for what it was not called for a step ago: a
branch of guidance that comes on, or another number of rows where both halves were one batch and guidance goes off.
Nothing is known of such a call, so that every part begins with a computed step.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from cachesmith.calibrate.closed_loop.replay import replayed
from cachesmith.policies import MAIN, PolicyError, Stack
from cachesmith.runtime import Answer, Tick, UnitCall, UnitResult, UseOutput, Watcher
from cachesmith.runtime.hooks.watch import watch_each
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request


class RunPart(NamedTuple):
    """From step `start` on these denoisers are called, in this order, always for the same or for less."""

    denoisers: tuple[str, ...]
    start: int


class _Call(NamedTuple):
    """One call of a step: of which denoiser, for which branch of guidance, the shape of what enters the blocks."""

    denoiser: str
    branch: str
    shape: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Course:
    """How an uncached run goes. parts: in order; calls: per branch of guidance, as `Stats.nfc` counts; branches: calls
    of one denoiser at the first step; steady: whether no step makes a call that the first does not make."""

    parts: tuple[RunPart, ...]
    calls: float
    branches: int
    steady: bool


class _Heard:
    """The calls by step, in their order; how many each branch has; denoisers whose call is in progress, and whether
    one was called in another's."""

    def __init__(self) -> None:
        self.steps: dict[int, list[_Call]] = defaultdict(list)
        self.branches: Counter[str] = Counter()
        self.within: list[str] = []
        self.nested = False


class _Turn(Watcher):
    """Notes the calls of one denoiser; has no block computed."""

    def __init__(self, name: str, heard: _Heard) -> None:
        super().__init__()
        self.name, self.heard = name, heard

    def begin(self, tick: Tick) -> None:
        """A transformer call."""
        super().begin(tick)
        self.heard.nested |= bool(self.heard.within)
        self.heard.within.append(self.name)
        self.heard.branches[tick.branch] += 1

    def answer(self, call: UnitCall) -> Answer:
        """Return the inputs."""
        if self._tick.step is not None:
            shape = tuple(tuple(tensor.shape) for tensor in call.inputs)
            self.heard.steps[self._tick.step].append(_Call(self.name, self._tick.branch, shape))
        return UseOutput(call.inputs)

    def observe(self, result: UnitResult) -> None:
        """Nothing is computed."""

    def end(self, output: Tensor) -> bool:
        """The call is over."""
        self.heard.within.pop()
        return False


def course_of(renderer: Renderer, requests: Sequence[Request]) -> Course:
    """How runs of `requests`, one batch, go. Raises `PolicyError` where one denoiser calls another, or they differ in
    the channels of their blocks."""
    pipe, heard = renderer.pipe, _Heard()
    with (
        watch_each(pipe, Stack(), lambda name, _: _Turn(name, heard)),
        replayed(pipe, len(requests), [], renderer.steps),
    ):
        renderer(requests)
    _check(type(pipe).__name__, heard)
    first = heard.steps[min(heard.steps)]
    return Course(
        tuple(_parts(heard.steps)),
        heard.branches.total() / len(heard.branches),
        max(Counter(call.denoiser for call in first).values()),
        all({*calls} <= {*first} for calls in heard.steps.values()),
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


def _parts(steps: Mapping[int, list[_Call]]) -> list[RunPart]:
    parts: list[RunPart] = []
    before: set[_Call] = set()
    for step in sorted(steps):
        names = tuple(dict.fromkeys(call.denoiser for call in steps[step]))
        if not parts or names != parts[-1].denoisers or not {*steps[step]} <= before:
            parts.append(RunPart(names, step))
        before = {*steps[step]}
    return parts


def _check(kind: str, heard: _Heard) -> None:
    calls = [call for step in sorted(heard.steps) for call in heard.steps[step]]
    names = " and ".join(dict.fromkeys(call.denoiser for call in calls))
    if not calls:
        raise PolicyError(
            f"no call of {kind} is at a step of its scheduler; calibrate with another scheduler"
        )
    if heard.nested:
        raise PolicyError(f"{names} of {kind} call one another, so they cannot be calibrated")
    if len({tuple(shape[-1] for shape in call.shape) for call in calls}) > 1:
        raise PolicyError(
            f"the blocks of {names} differ in their channels, so they cannot be calibrated together"
        )
    if calls[0].denoiser != MAIN:
        raise PolicyError(f"{kind} does not begin with {MAIN}, so it cannot be calibrated")
