"""Who takes part: a way to change a pipeline for the length of a context, with a name and a family."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from cachesmith.policies import Policy
from cachesmith.runtime.models.denoisers import denoisers
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request


class Gauge(NamedTuple):
    """`held()`: bytes the cache holds now; `nfc()`: full computations a picture, where the tool counts them itself."""

    held: Callable[[], int] = lambda: 0
    nfc: Callable[[], float] | None = None


Enter = Callable[[Renderer], AbstractContextManager[Gauge]]
"""Change the renderer's pipeline until the context is left."""


@dataclass(frozen=True)
class Course:
    """What everybody runs: the same requests; `tuning` is for fitting, `policy` is ours, or None.

    Settings are screened, and timed, on the first `screened` requests. `kept`: folder of the policies
    that were fitted, for this course alone.
    """

    renderer: Renderer
    requests: tuple[Request, ...]
    tuning: tuple[Request, ...]
    budgets: tuple[int, ...]
    policy: Policy | None = None
    screened: int | None = None
    kept: Path | None = None

    @property
    def screen(self) -> tuple[Request, ...]:
        """The requests on which every setting is measured."""
        return self.requests[: self.screened]

    @property
    def steps(self) -> int:
        """Sampler steps of the reference."""
        return self.renderer.steps

    @cached_property
    def steps_by_denoiser(self) -> dict[str, int]:
        """Steps in which each denoiser is asked, as seen on one request; guidance asks all alike."""
        networks = denoisers(self.renderer.pipe)
        if len(networks) == 1:
            return dict.fromkeys(networks, self.steps)
        calls = dict.fromkeys(networks, 0)
        with ExitStack() as stack:
            for name, network in networks.items():

                def count(*_: Any, name: str = name) -> None:
                    calls[name] += 1

                stack.callback(network.register_forward_hook(count).remove)
            self.renderer(self.requests[:1])
        return {name: round(count / sum(calls.values()) * self.steps) for name, count in calls.items()}


@dataclass(frozen=True)
class Contestant:
    """One setting of one method. `method` names what the best setting is picked from, `family` the tool."""

    name: str
    family: str
    method: str
    enter: Enter


@dataclass(frozen=True)
class Dial:
    """A method with a threshold that is set to the budget: the larger, the fewer computations.

    `name` holds `{}` where the threshold goes.
    """

    name: str
    family: str
    method: str
    turn: Callable[[float], Enter]
    low: float = 1e-3
    high: float = 10.0

    def at(self, value: float) -> Contestant:
        """Return the contestant with this threshold."""
        return Contestant(self.name.format(f"{value:.4g}"), self.family, self.method, self.turn(value))


Entry = Contestant | Dial


def named(entries: Iterable[Entry], name: str) -> Contestant | None:
    """The contestant of that name, at the threshold that the name holds."""
    for entry in entries:
        if isinstance(entry, Contestant):
            if entry.name == name:
                return entry
            continue
        before, after = entry.name.split("{}")
        threshold = name.removeprefix(before).removesuffix(after)
        if name == f"{before}{threshold}{after}" and _is_number(threshold):
            return entry.at(float(threshold))
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@contextmanager
def nothing(_: Renderer) -> Iterator[Gauge]:
    """Change nothing: the uncached pipeline."""
    yield Gauge()
