"""cache-dit's DBCache, with and without its TaylorSeer calibrator, by threshold or by step mask (SCM)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any

from torch.nn import ModuleList

from cachesmith.calibrate.render import Renderer
from contest.contestant import Contestant, Course, Dial, Enter, Entry, Gauge
from contest.ours import SLACK
from contest.yardstick import tensor_bytes

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
        static = {"steps_computation_mask": mask, "steps_computation_policy": "static", "max_warmup_steps": 1}
        yield Contestant(f"{method} {label}", FAMILY, method, cached(course, order, 1, **static))


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
    for computed in sorted({_affordable(course, budget) for budget in course.budgets}):
        yield f"even, {computed} computed", even_mask(computed, course.steps)


def _affordable(course: Course, budget: int) -> int:
    """Steps that may be computed whole if every other step computes the first block of every list."""
    lists = [
        len(child) for child in course.renderer.pipe.transformer.children() if isinstance(child, ModuleList)
    ]
    share = len(lists) / sum(lists)
    return max(2, int((budget + SLACK - course.steps * share) / (1 - share)))


def even_mask(computed: int, steps: int) -> list[int]:
    """Compute the first two steps and the others evenly spread over the rest."""
    chosen = {0, 1} | {1 + round(i * (steps - 1) / (computed - 1)) for i in range(1, computed - 1)}
    return [int(step in chosen) for step in range(steps)]


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
