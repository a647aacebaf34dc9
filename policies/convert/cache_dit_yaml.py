"""cache-dit's settings (`cache_dit.load_configs`, 1.5): section `cache_config` with its calibrator's keys in it."""

from typing import Any

from cachesmith.policies.convert.cache_dit_config import SLOPE, CacheConfig, read_cache_dit
from cachesmith.policies.convert.common import Converted, letters, masks_of, order_of, row, without_none, wrap
from cachesmith.policies.errors import PolicyError, refusing
from cachesmith.policies.forecaster import Forecaster
from cachesmith.policies.gate import Fixed
from cachesmith.policies.presets.presets import preset
from cachesmith.policies.profile import Profile
from cachesmith.policies.units import Segments, Stack

_TOOL = "cache-dit"


def from_cache_dit(raw: object, steps: int | None) -> Converted:
    """Read cache-dit's YAML: a static steps mask becomes a fixed schedule, DBCache the gate of preset `dbcache`.

    The first Fn and last Bn blocks are units of their own that are always computed.
    """
    config, notes = read_cache_dit(raw)
    if config.force_refresh_step_hint is not None:
        raise PolicyError("a policy cannot refresh in the middle of a run; remove force_refresh_step_hint")
    if config.steps_computation_mask is not None and config.steps_computation_policy == "static":
        return wrap("cache-dit", _masked(config, steps), *notes)
    if config.steps_computation_mask is not None:
        raise PolicyError(
            "a policy has either a mask or a dynamic gate; set steps_computation_policy: static, or remove the mask"
        )
    return wrap("dbcache", _dynamic(config), *notes)


def to_cache_dit(profile: Profile, steps: int, order: int | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the YAML's content with the profile's schedule as a static mask. Raises `PolicyError` where it cannot."""
    found = order_of(profile, _TOOL, order)
    masks = masks_of(profile, _TOOL, steps)
    first, notes = _first_blocks(profile, masks)
    if found and masks[None][1:2] == "C":
        notes = (*notes, SLOPE)
    return {
        "cache_config": without_none(
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


def _masked(config: CacheConfig, steps: int | None) -> Profile:
    if not isinstance(config.steps_computation_mask, list):
        raise PolicyError(
            f"the mask {config.steps_computation_mask!r} is a name; write out the list that "
            "cache_dit.steps_mask(total_steps=..., mask_policy=...) returns"
        )
    mask = letters([bool(flag) for flag in config.steps_computation_mask], "steps_computation_mask")
    for count in (config.num_inference_steps, steps):
        if count not in (None, len(mask)):
            raise PolicyError(
                f"steps_computation_mask has {len(mask)} entries for {count} steps; give one per step"
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
