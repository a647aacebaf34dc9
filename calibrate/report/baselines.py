"""What a user would do without a calibration, measured beside the profiles on the same samples in the same minutes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

from torch import Tensor

from cachesmith.calibrate.report.data import Family, Measurement
from cachesmith.policies import (
    Fixed,
    Forecaster,
    Policy,
    PolicyError,
    Profile,
    Stack,
    Taylor,
    computations,
    mask,
    preset,
    unbound,
)
from cachesmith.policies.gate import Interval
from cachesmith.policies.schedule import even
from cachesmith.progress import Advance
from cachesmith.runtime import apply
from cachesmith.sampling.evaluate import Evaluator
from cachesmith.sampling.metrics import METRICS
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.scores import bootstrap, measure_metric
from cachesmith.sampling.timing import elapsed, interleaved, medians

SAMPLES = 16
"""Held-out samples that the front stands for: baselines cost a run each."""

REPEATS = 3
"""Timed runs of each; the median counts."""

THRESHOLDS = (0.08, 0.2)
"""Of DBCache: cache-dit's own, and one at which it skips more."""

_UNCACHED = "uncached"


@dataclass(frozen=True)
class Way:
    """One way to sample: as many steps as `renderer` takes, under `policy` if there is one."""

    name: str
    family: Family
    renderer: Renderer
    policy: Policy | None = None
    profile: str | None = None

    def entered(self) -> AbstractContextManager[Any]:
        """Return a context in which the renderer's pipeline samples this way."""
        if self.policy is None:
            return nullcontext()
        return apply(self.renderer.pipe, self.policy, self.profile)


def profile_ways(renderer: Renderer, policy: Policy, names: Sequence[str]) -> list[Way]:
    """Return these profiles of `policy`."""
    return [Way(name, "profile", renderer, policy, name) for name in names]


def baseline_ways(renderer: Renderer, policy: Policy, names: Sequence[str]) -> list[Way]:
    """Return what a user knows for the budget of each of these profiles, and even steps as a control."""
    profiles = [policy.profile(name) for name in names]
    budgets = sorted({int(profile.nfc or 0) for profile in profiles} - {0})
    known = [way for budget in budgets for way in _known(renderer, budget)]
    return known + _even(renderer, profiles) + _dbcache(renderer)


def measure_ways(
    ways: Sequence[Way], heldout: Evaluator, batch: int, advance: Advance
) -> tuple[list[Measurement], float, list[str]]:
    """Measure every way on the first `SAMPLES` held-out requests, timed in turns on one batch of them.

    Returns the measurements, the uncached seconds a sample, and a sentence for every way that the model refused.
    """
    requests = heldout.requests[:SAMPLES]
    quality: dict[str, tuple[float, Tensor]] = {}
    notes: list[str] = []
    for way in ways:
        try:
            with way.entered() as session:
                pictures = way.renderer(requests)
        except PolicyError as error:
            notes.append(f"{way.family}, {way.name}, was left out: {error}")
            continue
        finally:
            advance()
        nfc = float(way.renderer.steps) if session is None else session.stats.nfc
        reference = heldout.reference[: len(requests)]
        quality[way.name] = nfc, measure_metric(METRICS["psnr"], reference, pictures)
    timed = [way for way in ways if way.name in quality]
    seconds = _seconds(heldout.renderer, timed, requests[:batch], advance)
    measurements = [_measurement(way, *quality[way.name], seconds[way.name]) for way in timed]
    return measurements, seconds[_UNCACHED], notes


def _known(renderer: Renderer, budget: int) -> Iterator[Way]:
    """Yield fewer steps, and TaylorSeer with the shortest interval that keeps within `budget` full computations."""
    steps = renderer.steps
    fewer = Renderer(renderer.pipe, budget, renderer.batch, **renderer.common)
    yield Way(f"{budget} steps", "fewer steps", fewer)
    for interval in range(max(2, ceil(steps / budget)), steps):
        if computations(mask(Interval(interval=interval, warmup=2), steps)) <= budget:
            made = preset("taylorseer", interval=interval, order=2)
            yield Way(f"interval {interval}", "TaylorSeer", renderer, made)
            return


def _even(renderer: Renderer, profiles: Sequence[Profile]) -> list[Way]:
    """Return lines on even steps, with the ends and the number of computed steps of each fixed profile."""
    steps = renderer.steps
    masks = [p.gate.mask for p in profiles if isinstance(p.gate, Fixed) and len(p.gate.mask) == steps]
    ends = sorted({(int(computations(letters)), len(letters.rstrip("F")) - 1) for letters in masks})
    line = Forecaster(rows=Taylor(order=1))
    return [
        Way(
            f"{count} steps from 0 to {last}",
            "even steps",
            renderer,
            unbound(Profile(units=Stack(), gate=Fixed(mask=even(steps, 0, last, count)), forecaster=line)),
        )
        for count, last in ends
    ]


def _dbcache(renderer: Renderer) -> list[Way]:
    made = {threshold: preset("dbcache", threshold=threshold) for threshold in THRESHOLDS}
    return [Way(f"threshold {t:g}", "DBCache", renderer, policy) for t, policy in made.items()]


def _seconds(
    renderer: Renderer, ways: Sequence[Way], requests: Sequence[Any], advance: Advance
) -> dict[str, float]:
    """Seconds a sample of every way, and uncached: each has run once before, so all is warm."""
    calls: dict[str, Callable[[], float]] = {_UNCACHED: partial(_timed, renderer, nullcontext, requests)}
    calls |= {way.name: partial(_timed, way.renderer, way.entered, requests) for way in ways}
    runs = interleaved(calls, REPEATS, lambda _: advance())
    return {name: value / len(requests) for name, value in medians(runs).items()}


def _timed(
    renderer: Renderer, entered: Callable[[], AbstractContextManager[Any]], requests: Sequence[Any]
) -> float:
    # entering a policy happens once per pipeline, not once per sample
    with entered():
        return elapsed(partial(renderer, requests), renderer.pipe.device)


def _measurement(way: Way, nfc: float, samples: Tensor, seconds: float) -> Measurement:
    low, high = bootstrap(samples, seed=0)
    return Measurement(way.name, way.family, nfc, seconds, float(samples.mean()), low, high)
