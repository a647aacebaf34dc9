"""Published methods in this project's runtime, and the calibrated policy. A new preset or method enters by itself."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from itertools import product
from typing import Any

from cachesmith.calibrate.methods import METHODS
from cachesmith.calibrate.render import Renderer
from cachesmith.policies import PRESETS, Interval, Policy, mask, preset
from cachesmith.runtime import apply
from contest.contestant import Contestant, Course, Dial, Enter, Entry, Gauge

FAMILY, CALIBRATED = "published, this runtime", "calibrated"
SLACK = 0.3
"""A setting counts for a budget if NFC exceeds it by no more."""
WARMUP = 2
DIALS = {"tau": (1e-3, 10.0), "threshold": (1e-4, 10.0)}
"""Options that are set to the budget, with the range they are looked for in."""
GRID: dict[str, tuple[Any, ...]] = {"order": (1, 2, 3)}
"""Options that are tried in every combination where a method has them; `interval` follows from the budgets."""
SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {"uncached": (), "rfc": ({"order": 1}, {"order": 2})}
"""Where names of options do not tell what to try: one line a method; an empty one leaves it out."""


def entries(course: Course) -> Iterator[Entry]:
    """Yield every preset and fitted method by its options, then the policy's profiles."""
    for name, made in PRESETS.items():
        yield from _settings(course, name, made, partial(preset, name))
    for name, fit in METHODS.items():
        fitted = cache(partial(_fitted, fit, course))
        yield from _settings(
            course, f"{name} (fitted)", fit, lambda f=fitted, **o: f(tuple(sorted(o.items())))
        )
    if course.policy is not None:
        for profile in course.policy.document.profiles:
            enter = applied(partial(_same, course.policy), profile)
            yield Contestant(f"calibrated {profile}", CALIBRATED, "calibrated", enter)


def _fitted(fit: Callable[..., Policy], course: Course, options: tuple[tuple[str, Any], ...]) -> Policy:
    return fit(course.renderer, list(course.tuning), **dict(options))


def _same(policy: Policy) -> Policy:
    return policy


def _settings(
    course: Course, name: str, signed: Callable[..., Policy], make: Callable[..., Policy]
) -> Iterator[Entry]:
    known = inspect.signature(signed).parameters
    dial = next((option for option in DIALS if option in known), None)
    for options in SETTINGS.get(name, _grid(course, known)):
        label = " ".join((name, *(f"{key}={value}" for key, value in options.items())))
        if dial is None:
            yield Contestant(label, FAMILY, name, applied(partial(make, **options)))
        else:
            turn = partial(_turned, make, dial, options)
            yield Dial(f"{label} {dial}={{}}", FAMILY, name, turn, *DIALS[dial])


def _turned(make: Callable[..., Policy], dial: str, options: Mapping[str, Any], value: float) -> Enter:
    return applied(partial(make, **options, **{dial: value}))


def _grid(course: Course, known: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Every combination of the options that are known by name."""
    values = {option: tried for option, tried in GRID.items() if option in known}
    if "interval" in known and not DIALS.keys() & known.keys():
        values["interval"] = intervals(course.steps, course.budgets)
    if "budget" in known:
        values["budget"] = course.budgets
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


def intervals(steps: int, budgets: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shortest interval within each budget, two steps of warm-up included."""
    counts = {i: mask(Interval(interval=i, warmup=WARMUP), steps).count("C") for i in range(2, steps)}
    found = {min(i for i, count in counts.items() if count <= budget + SLACK) for budget in budgets}
    return tuple(sorted(found, reverse=True))


def applied(make: Callable[[], Policy], profile: str | None = None) -> Enter:
    """Apply a policy for the length of a context; it is made, or fitted, on entry."""

    @contextmanager
    def enter(renderer: Renderer) -> Iterator[Gauge]:
        policy = make()
        with apply(renderer.pipe, policy, profile) as session:
            yield Gauge(lambda: session.stats.cache_bytes, lambda: session.stats.nfc)

    return enter
