"""cache-dit's DBCache, with and without its TaylorSeer calibrator, by threshold or by step mask (SCM)."""

import os
from collections.abc import Callable, Iterator, Mapping
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
Masks = Mapping[str, list[int]]
"""Denoiser -> for each of its steps, 1 where it is computed."""


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


def _masks(course: Course) -> Iterator[tuple[str, Masks]]:
    steps = course.steps_by_denoiser
    for policy in MASKS:
        mask = partial(_library().steps_mask, mask_policy=policy)
        yield policy, {name: mask(total_steps=count) for name, count in steps.items()}
    share = cached_share(course)
    for computed in sorted({_affordable(course, share, budget) for budget in course.budgets}):
        yield f"even, {computed} computed", even_masks(computed, steps)
        yield f"even after two, {computed} computed", even_masks(computed, steps, first=2)


def cached_share(course: Course) -> float:
    """The share of a step that is computed in a cached one, as measured on one request."""
    some, whole = course.requests[:1], len(course.steps_by_denoiser)
    masked = scheduled(course, 0, even_masks(whole, course.steps_by_denoiser))
    _, dear = play(course.renderer, Contestant("", "", "", nothing), some)
    _, cheap = play(course.renderer, Contestant("", "", "", masked), some)
    return (cheap.work / dear.work * course.steps - whole) / (course.steps - whole)


def _affordable(course: Course, share: float, budget: int) -> int:
    """Steps that may be computed whole if every other step computes `share` of one."""
    found = int((budget + SLACK - course.steps * share) / (1 - share))
    return max(2, len(course.steps_by_denoiser), found)


def even_masks(computed: int, steps: Mapping[str, int], first: int = 1) -> Masks:
    """Spread `computed` steps over the denoisers by how many each has; everyone computes its first."""
    total, left, masks = sum(steps.values()), computed, {}
    for name, count in steps.items():
        own = max(1, round(left * count / total))
        masks[name] = even_mask(own, count, min(first, own))
        total, left = total - count, left - own
    return masks


def even_mask(computed: int, steps: int, first: int = 1) -> list[int]:
    """Compute the first steps, and in all `computed` ones, evenly spread over the rest."""
    rest = (steps - first + 1) / max(1, computed - first + 1)
    chosen = {*range(first - 1), *(first - 1 + round(i * rest) for i in range(computed - first + 1))}
    return [int(step in chosen) for step in range(steps)]


def scheduled(course: Course, order: int, masks: Masks) -> Enter:
    """Compute the steps of a mask (SCM), each denoiser those of its own."""
    static = {"steps_computation_policy": "static", "max_warmup_steps": 1}
    return cached(course, order, 1, lambda name: {"steps_computation_mask": masks[name]}, **static)


def cached(
    course: Course,
    order: int,
    first: int,
    own: Callable[[str], dict[str, Any]] = lambda _: {},
    **options: Any,
) -> Enter:
    """Enable DBCache for the length of a context; `own(name)` are the options of one denoiser."""

    @contextmanager
    def enter(renderer: Renderer) -> Iterator[Gauge]:
        cache_dit, steps = _library(), course.steps_by_denoiser
        configs = [
            cache_dit.DBCacheConfig(
                Fn_compute_blocks=first, num_inference_steps=count, **options, **own(name)
            )
            for name, count in steps.items()
        ]
        calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
        modifiers = [cache_dit.ParamsModifier(cache_config=config) for config in configs]
        several = {"params_modifiers": modifiers} if len(configs) > 1 else {}
        cache_dit.enable_cache(
            renderer.pipe, cache_config=configs[0], calibrator_config=calibrator, **several
        )
        try:
            yield Gauge(partial(tensor_bytes, renderer.pipe._context_manager))
        finally:
            cache_dit.disable_cache(renderer.pipe)

    return enter
