"""Published methods in this project's runtime, and the calibrated policy. A new preset or method enters by itself."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from itertools import product
from typing import Any

from cachesmith.calibrate.methods import METHODS
from cachesmith.policies import PRESETS, SUFFIX, Interval, Policy, load, mask, preset, save
from cachesmith.runtime import apply
from cachesmith.sampling.render import Renderer
from contest.contestant import Contestant, Course, Dial, Enter, Entry, Gauge

FAMILY, CALIBRATED = "published, this runtime", "calibrated"
SLACK = 0.3
"""A setting counts for a budget if NFC exceeds it by no more."""
DIALS = {"tau": (1e-3, 10.0), "threshold": (1e-4, 10.0)}
"""Options that are set to the budget, with the range they are looked for in."""
ORDERS = (1, 2, 3)
"""Orders that are tried where a method has one."""
TRIED: dict[str, dict[str, tuple[Any, ...]]] = {
    "rfc": {"order": (1, 2)},
    "ab-cache": {"order": (2, 3)},
    "dbcache": {"order": (1, 2), "warmup": (1, 3)},
    "easycache": {"warmup": (2, 5)},
    "toca": {"interval": (5, 7, 9, 12)},
    "duca": {"interval": (5, 7, 9, 12)},
    "clusca": {"order": (1, 2), "interval": (5, 7, 9, 12), "clusters": (4, 16)},
    "teacache (fitted)": {"budget": (8, 10, 13, 14)},
    "dpcache (fitted)": {"order": (1, 2)},
    "magcache (fitted)": {"max_skips": (5, 9)},
    "smoothcache (fitted)": {"lookahead": (3, 7)},
    "svd-cache (fitted)": {"row": ("ema", "taylor-2")},
    "sglang-dpcache (fitted)": {"max_gap": (8, 0)},
    "golden-path (fitted)": {"evaluations": (150,)},
}
"""Values of options that names do not tell, or that a method restricts, for 8, 10 and 14 of 50 steps."""
LEFT_OUT = ("uncached", "magcache")
"""MagCache enters fitted: without a model's ratios there is no preset."""


def entries(course: Course) -> Iterator[Entry]:
    """Yield every preset and fitted method by its options, then the policy's profiles."""
    for name, made in PRESETS.items():
        yield from _settings(course, name, made, partial(preset, name))
    for name, fit in METHODS.items():
        fitted = cache(partial(_fitted, name, fit, course))
        yield from _settings(
            course, f"{name} (fitted)", fit, lambda f=fitted, **o: f(tuple(sorted(o.items())))
        )
    if course.policy is not None:
        for profile in course.policy.document.profiles:
            enter = applied(partial(_same, course.policy), profile)
            label = f"calibrated {profile} ({course.policy.id[:6]})"
            yield Contestant(label, CALIBRATED, "calibrated", enter)


def _fitted(
    name: str, fit: Callable[..., Policy], course: Course, options: tuple[tuple[str, Any], ...]
) -> Policy:
    """Fit, or read what was fitted before: a search takes minutes to hours."""
    if course.kept is None:
        return fit(course.renderer, list(course.tuning), **dict(options))
    path = course.kept / " ".join((name, *(f"{key}={value}" for key, value in options)))
    path = path.with_name(path.name + SUFFIX)
    if not path.exists():
        policy = fit(course.renderer, list(course.tuning), **dict(options))
        path.parent.mkdir(parents=True, exist_ok=True)
        save(policy, path)
    return load(path)


def _same(policy: Policy) -> Policy:
    return policy


def _settings(
    course: Course, name: str, signed: Callable[..., Policy], make: Callable[..., Policy]
) -> Iterator[Entry]:
    known = inspect.signature(signed).parameters
    dial = None if "budget" in known else next((option for option in DIALS if option in known), None)
    for options in () if name in LEFT_OUT else _grid(course, name, known, dial):
        label = " ".join((name, *(f"{key}={value}" for key, value in options.items())))
        if dial is None:
            yield Contestant(label, FAMILY, name, applied(partial(make, **options)))
        else:
            turn = partial(_turned, make, dial, options)
            yield Dial(f"{label} {dial}={{}}", FAMILY, name, turn, *DIALS[dial])


def _turned(make: Callable[..., Policy], dial: str, options: Mapping[str, Any], value: float) -> Enter:
    return applied(partial(make, **options, **{dial: value}))


def _grid(course: Course, name: str, known: Mapping[str, Any], dial: str | None) -> Iterator[dict[str, Any]]:
    """Yield every combination of the options to try.

    A budget is given as it is, an interval follows from it, unless `TRIED` has others.
    """
    values: dict[str, tuple[Any, ...]] = {"order": ORDERS} if "order" in known else {}
    if "budget" in known:
        values["budget"] = course.budgets
    elif "interval" in known and dial is None:
        warmup = known["warmup"].default
        values["interval"] = intervals(course.steps, course.budgets, warmup)
    values |= TRIED.get(name, {})
    yield from (dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


def intervals(steps: int, budgets: tuple[int, ...], warmup: int) -> tuple[int, ...]:
    """Return the shortest interval within each budget, `warmup` computed steps at the start included."""
    counts = {i: mask(Interval(interval=i, warmup=warmup), steps).count("C") for i in range(2, steps)}
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
