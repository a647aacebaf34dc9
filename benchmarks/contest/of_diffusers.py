"""The caches of diffusers (hooks): TaylorSeer, First-Block Cache and MagCache, applied as its documentation says.

`DiTTransformer2DModel` is not a `CacheMixin`: nobody opens a cache context for it, and `enable_cache` does not exist.
The public `apply_*` functions work on any module; what the mixin and the pipeline would do is done here.
"""

import ast
import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
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
from cachesmith.runtime.models.denoisers import denoisers
from cachesmith.sampling.render import Renderer
from contest.contestant import Contestant, Course, Dial, Enter, Entry, Gauge
from contest.yardstick import tensor_bytes

FAMILY = "diffusers"
INTERVALS, ORDERS, WARMUP = range(3, 10), (1, 2), 2
BLOCK = r"((single_)?transformer_)?blocks\.\d+"
MODULES = [
    r"(transformer_)?blocks\.\d+\.(attn[12]?|ff|ffn|ff_context|img_mlp|txt_mlp)",
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
        config = TaylorSeerCacheConfig(
            cache_interval=interval, max_order=order,
            disable_cache_before_step=WARMUP, taylor_factors_dtype=torch.float32, **options,
        )  # fmt: skip
        name = f"diffusers {variant} interval={interval} order={order}"
        yield Contestant(name, FAMILY, f"diffusers {variant}", hooked(apply_taylorseer_cache, _same(config)))


def _same(config: Any) -> Callable[[str], Any]:
    """Every denoiser gets this configuration."""
    return lambda _: config


def _first_block(threshold: float) -> Enter:
    return hooked(apply_first_block_cache, _same(FirstBlockCacheConfig(threshold=threshold)))


def _mag_cache(
    course: Course, ratios: dict[str, list[float]], skips: int, retention: float, threshold: float
) -> Enter:
    def config(name: str) -> MagCacheConfig:
        if not ratios:
            ratios.update(magnitude_ratios(course))
        return MagCacheConfig(
            threshold=threshold, max_skip_steps=skips, retention_ratio=retention,
            num_inference_steps=len(ratios[name]), mag_ratios=ratios[name],
        )  # fmt: skip

    return hooked(apply_mag_cache, config)


def magnitude_ratios(course: Course) -> dict[str, list[float]]:
    """Run MagCache's calibration on the tuning requests, one batch, and read the list that each denoiser prints."""
    renderer, found = course.renderer, {}
    for name, steps in course.steps_by_denoiser.items():
        printed = io.StringIO()
        config = MagCacheConfig(calibrate=True, num_inference_steps=steps)
        with redirect_stdout(printed), hooked(apply_mag_cache, {name: config}.get)(renderer):
            renderer(course.tuning[: renderer.batch])
        lines = [
            line for line in printed.getvalue().splitlines() if line.startswith("[") and line.endswith("]")
        ]
        found[name] = [float(value) for value in ast.literal_eval(lines[0])]
    return found


def hooked(attach: Callable[[nn.Module, Any], None], configure: Callable[[str], Any]) -> Enter:
    """Apply one cache to every denoiser that `configure(name)` has a configuration for; all hooks go on exit."""

    @contextmanager
    def enter(renderer: Renderer) -> Iterator[Gauge]:
        pipe = renderer.pipe
        wanted = [(network, configure(name)) for name, network in denoisers(pipe).items()]
        networks = [network for network, config in wanted if config is not None]
        for network, config in wanted:
            if config is not None:
                attach(network, config)
                _registry(network).invalidate_child_registries_cache()
        try:
            with ExitStack() as stack:
                for network in networks:
                    stack.enter_context(_contexts(pipe, network))
                yield Gauge(lambda: sum(map(_held, networks)))
        finally:
            for network in networks:
                for hook in _hook_names(network):
                    _registry(network).remove_hook(hook, recurse=True)
                _registry(network).invalidate_child_registries_cache()

    return enter


def _registry(network: nn.Module) -> HookRegistry:
    return HookRegistry.check_if_exists_or_initialize(network)


@contextmanager
def _contexts(pipe: Any, transformer: nn.Module) -> Iterator[None]:
    """Open a context around every call and reset after every run, where the model is no `CacheMixin`."""
    free = pipe.maybe_free_model_hooks
    if hasattr(transformer, "cache_context"):
        yield
        return
    forward = transformer.forward

    def call(*args: Any, **kwargs: Any) -> Any:
        _set_cache_context(transformer, CacheContext("cond"))
        return forward(*args, **kwargs)

    def finish() -> None:
        _registry(transformer).reset_stateful_hooks()
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
