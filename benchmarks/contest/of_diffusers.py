"""The caches of diffusers (hooks): TaylorSeer, First-Block Cache and MagCache, applied as its documentation says.

`DiTTransformer2DModel` is not a `CacheMixin`: nobody opens a cache context for it, and `enable_cache` does not exist.
The public `apply_*` functions work on any module; what the mixin and the pipeline would do is done here.
"""

import ast
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from itertools import product
from typing import Any

import torch
from diffusers.hooks import (
    FirstBlockCacheConfig,
    HookRegistry,
    MagCacheConfig,
    TaylorSeerCacheConfig,
    apply_first_block_cache,
    apply_mag_cache,
    apply_taylorseer_cache,
)
from diffusers.hooks.hooks import CacheContext, StateManager, _set_cache_context
from torch import nn

from cachesmith.runtime.hooks.patch import patched
from cachesmith.sampling.render import Renderer
from contest.contestant import Contestant, Course, Dial, Enter, Entry, Gauge
from contest.yardstick import tensor_bytes

FAMILY = "diffusers"
INTERVALS, ORDERS, WARMUP = range(3, 10), (1, 2), 2
BLOCK = r"(single_)?transformer_blocks\.\d+"
MODULES = [
    r"transformer_blocks\.\d+\.(attn1?|ff|ff_context|img_mlp|txt_mlp)",
    r"single_transformer_blocks\.\d+\.proj_out",
]
"""What the TaylorSeer paper caches: attention and MLP; a single-stream block's output is its last projection's."""
UNUSED = [r"single_transformer_blocks\.\d+\.(attn|proj_mlp)"]
"""What need not be computed once the last projection of a single-stream block is forecast."""
LAST = [r"proj_out(_2)?"]
"""diffusers' lite mode looks for `proj_out` only; DiT's last layer is `proj_out_2`."""


def entries(course: Course) -> Iterator[Entry]:
    """Yield every setting; thresholds are dials."""
    yield from _taylorseer()
    yield Dial("diffusers FirstBlockCache threshold={}", FAMILY, "diffusers FirstBlockCache", _first_block)
    ratios: dict[str, list[float]] = {}
    for skips, retention in product((3, 5, 8), (0.1, 0.2)):
        yield Dial(
            f"diffusers MagCache threshold={{}} max_skip={skips} retention={retention}",
            FAMILY, "diffusers MagCache", partial(_mag_cache, course, ratios, skips, retention), 1e-4, 100.0,
        )  # fmt: skip


def _taylorseer() -> Iterator[Contestant]:
    variants: dict[str, dict[str, Any]] = {
        "TaylorSeer": {"cache_identifiers": MODULES, "skip_predict_identifiers": UNUSED},
        "TaylorSeer lite": {"cache_identifiers": LAST, "skip_predict_identifiers": [BLOCK]},
        "TaylorSeer, default modules": {},
    }
    for (variant, options), interval, order in product(variants.items(), INTERVALS, ORDERS):
        config = partial(
            TaylorSeerCacheConfig, cache_interval=interval, max_order=order,
            disable_cache_before_step=WARMUP, taylor_factors_dtype=torch.float32, **options,
        )  # fmt: skip
        name = f"diffusers {variant} interval={interval} order={order}"
        yield Contestant(name, FAMILY, f"diffusers {variant}", hooked(apply_taylorseer_cache, config))


def _first_block(threshold: float) -> Enter:
    return hooked(apply_first_block_cache, partial(FirstBlockCacheConfig, threshold=threshold))


def _mag_cache(
    course: Course, ratios: dict[str, list[float]], skips: int, retention: float, threshold: float
) -> Enter:
    def config() -> MagCacheConfig:
        if "found" not in ratios:
            ratios["found"] = magnitude_ratios(course)
        return MagCacheConfig(
            threshold=threshold, max_skip_steps=skips, retention_ratio=retention,
            num_inference_steps=course.steps, mag_ratios=ratios["found"],
        )  # fmt: skip

    return hooked(apply_mag_cache, config)


def magnitude_ratios(course: Course) -> list[float]:
    """Run MagCache's calibration on the tuning requests, one batch, and read the list it prints."""
    config = partial(MagCacheConfig, calibrate=True, num_inference_steps=course.steps)
    renderer, printed = course.renderer, io.StringIO()
    with redirect_stdout(printed), hooked(apply_mag_cache, config)(renderer):
        renderer(course.tuning[: renderer.batch])
    lines = [line for line in printed.getvalue().splitlines() if line.startswith("[") and line.endswith("]")]
    return [float(value) for value in ast.literal_eval(lines[0])]


def hooked(attach: Callable[[nn.Module, Any], None], configure: Callable[[], Any]) -> Enter:
    """Apply one cache; on exit every hook it registered is removed."""

    @contextmanager
    def enter(renderer: Renderer) -> Iterator[Gauge]:
        pipe = renderer.pipe
        config = configure()
        attach(pipe.transformer, config)
        registry = HookRegistry.check_if_exists_or_initialize(pipe.transformer)
        registry.invalidate_child_registries_cache()
        try:
            with _contexts(pipe):
                yield Gauge(partial(_held, pipe.transformer))
        finally:
            for name in _hook_names(pipe.transformer):
                registry.remove_hook(name, recurse=True)
            registry.invalidate_child_registries_cache()

    return enter


@contextmanager
def _contexts(pipe: Any) -> Iterator[None]:
    """Open a context around every call and reset after every run, where the model is no `CacheMixin`."""
    transformer, free = pipe.transformer, pipe.maybe_free_model_hooks
    if hasattr(transformer, "cache_context"):
        yield
        return
    forward = transformer.forward

    def call(*args: Any, **kwargs: Any) -> Any:
        _set_cache_context(transformer, CacheContext("cond"))
        return forward(*args, **kwargs)

    def finish() -> None:
        HookRegistry.check_if_exists_or_initialize(transformer).reset_stateful_hooks()
        free()

    with patched(transformer, "forward", call), patched(pipe, "maybe_free_model_hooks", finish):
        yield


def _registries(transformer: nn.Module) -> list[Any]:
    return [m._diffusers_hook for m in transformer.modules() if hasattr(m, "_diffusers_hook")]


def _hook_names(transformer: nn.Module) -> set[str]:
    return {name for registry in _registries(transformer) for name in registry.hooks}


def _held(transformer: nn.Module) -> int:
    hooks = [hook for registry in _registries(transformer) for hook in registry.hooks.values()]
    managers = [value for hook in hooks for value in vars(hook).values() if isinstance(value, StateManager)]
    return tensor_bytes(*(manager._state_cache for manager in managers))
