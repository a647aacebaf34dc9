"""The fields of cache-dit's settings, and what a policy does differently."""

from typing import Literal

from pydantic import Field

from cachesmith.policies.base import Frozen
from cachesmith.policies.convert.common import parse_settings
from cachesmith.policies.errors import PolicyError

SECTIONS = ("cache_config", "parallelism_config", "attention_backend", "quantize_config")
Flag = Literal[0, 1]
SLOPE = "cache-dit forecasts from step 3 on with a slope; this policy from its second computed step on"


class CacheConfig(Frozen):
    """`DBCacheConfig` and the flat calibrator keys, with cache-dit's defaults."""

    cache_type: Literal["DBCache"] = "DBCache"
    Fn_compute_blocks: int = Field(default=8, ge=1, le=10_000)
    Bn_compute_blocks: int = Field(default=0, ge=0, le=10_000)
    residual_diff_threshold: float = Field(default=0.08, ge=0)
    max_accumulated_residual_diff_threshold: float | None = None
    max_warmup_steps: int = Field(default=8, ge=0)
    warmup_interval: int = Field(default=1, ge=1)
    max_cached_steps: int = -1
    max_continuous_cached_steps: int = -1
    enable_separate_cfg: bool | None = None
    cfg_compute_first: bool = False
    cfg_diff_compute_separate: bool = True
    num_inference_steps: int | None = Field(default=None, ge=1)
    steps_computation_mask: list[Flag] | str | None = None
    steps_computation_policy: Literal["dynamic", "static"] = "dynamic"
    force_refresh_step_hint: int | None = None
    force_refresh_step_policy: Literal["once", "repeat"] = "once"
    enable_taylorseer: bool = False
    enable_encoder_taylorseer: bool = False
    taylorseer_order: int = Field(default=1, ge=1, le=4)
    taylorseer_cache_type: Literal["residual"] = "residual"
    enable_dmd: Literal[False] = False
    enable_foca: Literal[False] = False


def read_cache_dit(raw: object) -> tuple[CacheConfig, tuple[str, ...]]:
    """Return the settings, and a sentence for every one of them that a policy does not have.

    Raises `PolicyError` naming what cannot be read.
    """
    if not isinstance(raw, dict):
        raise PolicyError(f"cache-dit's settings must be a mapping of sections, got {type(raw).__name__}")
    if "cache_config" not in raw:
        # the older flat form
        config = parse_settings(CacheConfig, raw, "cache-dit's settings")
        return config, _remarks(config)
    for section in raw:
        if section not in SECTIONS:
            raise PolicyError(f"cache-dit has no section {str(section)[:80]!r}; it has {', '.join(SECTIONS)}")
    config = parse_settings(CacheConfig, raw["cache_config"], "cache_config")
    others = (name for name in raw if name != "cache_config")
    return config, (
        *(f"{name} is left to you: a policy says nothing about it" for name in others),
        *_remarks(config),
    )


def _remarks(config: CacheConfig) -> tuple[str, ...]:
    taylor, dynamic = config.enable_taylorseer, config.steps_computation_mask is None
    told = {
        SLOPE: taylor,
        "without enable_encoder_taylorseer cache-dit reuses the text's stream; this policy forecasts every stream": (
            taylor and not config.enable_encoder_taylorseer
        ),
        "enable_separate_cfg is left out: the runtime sees by itself whether guidance takes calls of its own": (
            config.enable_separate_cfg is not None
        ),
        "cfg_compute_first is left out: the runtime keeps guidance branches apart in either order": (
            config.cfg_compute_first
        ),
        "without cfg_diff_compute_separate one guidance branch decides for both; here each decides for itself": (
            dynamic and not config.cfg_diff_compute_separate
        ),
        "cache-dit takes a residual_diff_threshold of 1 or more for any change; here a larger one is computed": (
            dynamic and config.residual_diff_threshold >= 1
        ),
    }
    return tuple(sentence for sentence, holds in told.items() if holds)
