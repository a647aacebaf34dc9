"""cache-dit's settings (`cache_dit.load_configs`, 1.5): section `cache_config` with its calibrator's keys in it."""

from typing import Any, Literal

from pydantic import Field

from cachesmith.policies.base import Frozen
from cachesmith.policies.convert.common import (
    Converted,
    letters,
    masks_of,
    order_of,
    parse,
    row,
    settings,
    wrap,
)
from cachesmith.policies.document import Profile
from cachesmith.policies.errors import PolicyError, refusing
from cachesmith.policies.forecaster import Forecaster
from cachesmith.policies.gate import Fixed
from cachesmith.policies.presets import preset
from cachesmith.policies.units import Segments, Stack

TOOL = "cache-dit"
SECTIONS = ("cache_config", "parallelism_config", "attention_backend", "quantize_config")
Flag = Literal[0, 1]


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


def from_cache_dit(raw: object, steps: int | None) -> Converted:
    """Read cache-dit's YAML: a static steps mask becomes a fixed schedule, DBCache the gate of preset `dbcache`.

    The first Fn and last Bn blocks are units of their own that are always computed.
    """
    config, notes = _config(raw)
    if config.force_refresh_step_hint is not None:
        raise PolicyError("a policy cannot refresh in the middle of a run; remove force_refresh_step_hint")
    if config.enable_taylorseer:
        notes.append(
            "cache-dit forecasts from step 3 on with a slope; this policy from its second computed step on"
        )
    if config.steps_computation_mask is not None and config.steps_computation_policy == "static":
        return wrap("cache-dit", _masked(config), *notes)
    if config.steps_computation_mask is not None:
        raise PolicyError(
            "a policy has either a mask or a dynamic gate; set steps_computation_policy: static, or remove the mask"
        )
    return wrap("dbcache", _dynamic(config), *notes)


def to_cache_dit(profile: Profile, steps: int, order: int | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the YAML's content with the profile's schedule as a static mask. Raises `PolicyError` where it cannot."""
    found = order_of(profile, TOOL, order)
    masks = masks_of(profile, TOOL, steps)
    first, notes = _first_blocks(profile, masks)
    return {
        "cache_config": settings(
            {
                "Fn_compute_blocks": first,
                "Bn_compute_blocks": 0,
                "max_warmup_steps": 0,
                "num_inference_steps": steps,
                "steps_computation_mask": [int(letter == "C") for letter in masks[None]],
                "steps_computation_policy": "static",
                "enable_taylorseer": found > 0,
                "enable_encoder_taylorseer": found > 0,
                "taylorseer_order": found or None,
            }
        )
    }, notes


def _config(raw: object) -> tuple[CacheConfig, list[str]]:
    if not isinstance(raw, dict):
        raise PolicyError(f"cache-dit's settings must be a mapping of sections, got {type(raw).__name__}")
    if "cache_config" not in raw:
        # the older flat form
        return parse(CacheConfig, raw, "cache-dit's settings"), []
    for section in raw:
        if section not in SECTIONS:
            raise PolicyError(f"cache-dit has no section {str(section)[:80]!r}; it has {', '.join(SECTIONS)}")
    notes = [
        f"{name} is left to you: a policy says nothing about it" for name in raw if name != "cache_config"
    ]
    return parse(CacheConfig, raw["cache_config"], "cache_config"), notes


def _masked(config: CacheConfig) -> Profile:
    if not isinstance(config.steps_computation_mask, list):
        raise PolicyError(
            f"the mask {config.steps_computation_mask!r} is a name; write out the list that "
            "cache_dit.steps_mask(total_steps=..., mask_policy=...) returns"
        )
    mask = letters([bool(flag) for flag in config.steps_computation_mask], "steps_computation_mask")
    if config.num_inference_steps not in (None, len(mask)):
        raise PolicyError(
            f"steps_computation_mask has {len(mask)} entries for {config.num_inference_steps} steps; give one per step"
        )
    starts = (
        0,
        config.Fn_compute_blocks,
        *((-config.Bn_compute_blocks,) if config.Bn_compute_blocks else ()),
    )
    always = {f"segment.{index}": "C" * len(mask) for index in range(0, len(starts), 2)}
    with refusing("a policy of Fn_compute_blocks and Bn_compute_blocks"):
        units = Segments(starts=starts)
    return Profile(
        units=units,
        gate=Fixed(mask=mask, groups=always),
        forecaster=_forecaster(config),
    )


def _dynamic(config: CacheConfig) -> Profile:
    """Return preset `dbcache` with these settings. Raises `PolicyError` for those its gate does not have."""
    for field in (
        "Bn_compute_blocks",
        "max_accumulated_residual_diff_threshold",
        "max_cached_steps",
        "warmup_interval",
    ):
        if getattr(config, field) != CacheConfig.model_fields[field].default:
            raise PolicyError(f"the gate of preset dbcache has no {field}; remove it from cache_config")
    longest = config.max_continuous_cached_steps
    profile = preset(
        "dbcache",
        threshold=config.residual_diff_threshold,
        fn=config.Fn_compute_blocks,
        warmup=max(1, config.max_warmup_steps),
        **({} if longest < 0 else {"max_interval": longest + 1}),
    ).profile()
    return profile.model_copy(update={"forecaster": _forecaster(config)})


def _forecaster(config: CacheConfig) -> Forecaster:
    return Forecaster(rows=row(config.taylorseer_order if config.enable_taylorseer else 0))


def _first_blocks(profile: Profile, masks: dict[str | None, str]) -> tuple[int, tuple[str, ...]]:
    """Return how many first blocks cache-dit computes at every step; it needs at least one."""
    match profile.units:
        case Stack() if len(masks) == 1:
            return 1, ("cache-dit always computes the first block; the policy forecasts all blocks together",)
        case Segments(starts=(0, first)) if first > 0 and set(masks) == {None, "segment.0"}:
            if set(masks["segment.0"]) == {"C"}:
                return first, ()
    raise PolicyError(
        f"cache-dit forecasts all blocks after the first few with one schedule, not units {profile.units.kind!r} "
        "like these; export a profile whose unit is the stack"
    )
