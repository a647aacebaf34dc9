"""cache-dit's DBCache, with and without its TaylorSeer calibrator, by threshold or by step mask (SCM)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any

from cachesmith.sampling.render import Renderer
from contest.contestant import Contestant, Course, Dial, Enter, Entry, Gauge, nothing
from contest.ours import SLACK
from contest.yardstick import play, tensor_bytes

FAMILY = "cache-dit"
FIRST_BLOCKS, ORDERS = (1, 2), (0, 1, 2)
"""Blocks computed in every step; orders of TaylorSeer, 0 for plain reuse of residuals."""
LIMITS = ((1, -1), (3, -1), (1, 6))
"""Steps of warm-up, and the longest run of cached steps (-1: no limit)."""
MASKS = ("slow", "medium", "fast", "ultra")


def entries(course: Course) -> Iterator[Entry]:
    """Yield every setting; thresholds are dials."""
    for first, order, limits in product(FIRST_BLOCKS, ORDERS, LIMITS):
        method, (warmup, longest) = f"cache-dit DBCache{_taylor(order)}", limits
        name = f"{method} F{first} warmup={warmup} longest={longest} threshold={{}}"
        yield Dial(name, FAMILY, method, partial(_turned, course, first, order, limits))
    for (label, mask), order in product(_masks(course), ORDERS):
        method = f"cache-dit SCM{_taylor(order)}"
        yield Contestant(f"{method} {label}", FAMILY, method, scheduled(course, order, mask))


def _turned(course: Course, first: int, order: int, limits: tuple[int, int], threshold: float) -> Enter:
    warmup, longest = limits
    return cached(
        course, order, first, residual_diff_threshold=threshold, max_warmup_steps=warmup,
        max_continuous_cached_steps=longest,
    )  # fmt: skip


def _library() -> Any:
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "ERROR")  # read on import
    return import_module("cache_dit")


def _taylor(order: int) -> str:
    return f" + TaylorSeer order {order}" if order else ""


def _masks(course: Course) -> Iterator[tuple[str, list[int]]]:
    for policy in MASKS:
        yield policy, _library().steps_mask(mask_policy=policy, total_steps=course.steps)
    share = cached_share(course)
    for computed in sorted({_affordable(course.steps, share, budget) for budget in course.budgets}):
        yield f"even, {computed} computed", even_mask(computed, course.steps)
        yield f"even after two, {computed} computed", even_mask(computed, course.steps, first=2)


def cached_share(course: Course) -> float:
    """The share of a step that is computed in a cached one, as measured on one request."""
    masked = scheduled(course, 0, even_mask(1, course.steps))
    some = course.requests[:1]
    _, whole = play(course.renderer, Contestant("", "", "", nothing), some)
    _, cheap = play(course.renderer, Contestant("", "", "", masked), some)
    return (cheap.work / whole.work * course.steps - 1) / (course.steps - 1)


def _affordable(steps: int, share: float, budget: int) -> int:
    """Steps that may be computed whole if every other step computes `share` of one."""
    return max(2, int((budget + SLACK - steps * share) / (1 - share)))


def even_mask(computed: int, steps: int, first: int = 1) -> list[int]:
    """Compute the first steps, and in all `computed` ones, evenly spread over the rest."""
    rest = (steps - first + 1) / max(1, computed - first + 1)
    chosen = {*range(first - 1), *(first - 1 + round(i * rest) for i in range(computed - first + 1))}
    return [int(step in chosen) for step in range(steps)]


def scheduled(course: Course, order: int, mask: list[int]) -> Enter:
    """Compute the steps of a mask (SCM)."""
    static = {"steps_computation_mask": mask, "steps_computation_policy": "static", "max_warmup_steps": 1}
    return cached(course, order, 1, **static)


def cached(course: Course, order: int, first: int, **options: Any) -> Enter:
    """Enable DBCache for the length of a context."""

    @contextmanager
    def enter(renderer: Renderer) -> Iterator[Gauge]:
        cache_dit = _library()
        config = cache_dit.DBCacheConfig(Fn_compute_blocks=first, num_inference_steps=course.steps, **options)
        calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
        cache_dit.enable_cache(renderer.pipe, cache_config=config, calibrator_config=calibrator)
        try:
            yield Gauge(partial(tensor_bytes, renderer.pipe._context_manager))
        finally:
            cache_dit.disable_cache(renderer.pipe)

    return enter
