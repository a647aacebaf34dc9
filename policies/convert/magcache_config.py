"""diffusers' `MagCacheConfig` (`diffusers.hooks`, 0.42), both ways."""

from typing import Any

from pydantic import Field

from cachesmith.policies.base import Frozen
from cachesmith.policies.convert.common import Converted, masks_of, order_of, parse_settings
from cachesmith.policies.errors import PolicyError
from cachesmith.policies.presets.magcache import resample_ratios
from cachesmith.policies.presets.presets import preset
from cachesmith.policies.profile import Profile
from cachesmith.policies.units import Stack

MAGCACHE = "diffusers' MagCacheConfig"
KEPT, BROKEN, THRESHOLD = 1.0, 2.0, 0.5
"""Ratios of a step that is skipped, whose product stays 1, and of one that is computed, which breaks the threshold."""


class MagCacheFields(Frozen):
    """`MagCacheConfig`."""

    threshold: float = Field(default=0.06, ge=0)
    max_skip_steps: int = Field(default=3, ge=0)
    retention_ratio: float = Field(default=0.2, ge=0, le=1)
    num_inference_steps: int = Field(default=28, ge=1, le=10_000)
    mag_ratios: list[float] = Field(min_length=1, max_length=10_000)
    calibrate: bool = False


def from_magcache(raw: object, steps: int | None) -> Converted:
    """Read a `MagCacheConfig` with ratios: its decisions read no tensor, so they become a fixed schedule.

    A bare list is its `mag_ratios`.
    """
    fields = parse_settings(MagCacheFields, {"mag_ratios": raw} if isinstance(raw, list) else raw, MAGCACHE)
    if fields.calibrate:
        raise PolicyError("the MagCacheConfig asks for calibration; run it, and give the ratios it prints")
    count = steps or fields.num_inference_steps
    ratios = resample_ratios(fields.mag_ratios, count)
    return Converted(
        preset(
            "magcache",
            ratios=ratios,
            threshold=fields.threshold,
            max_skips=fields.max_skip_steps,
            retention=fields.retention_ratio,
        )
    )


def to_magcache(profile: Profile, steps: int, order: int | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a `MagCacheConfig` that computes the same steps. Raises `PolicyError` where there is none.

    diffusers decides by the product of the ratios since the last computed step: any schedule is a choice of ratios.
    """
    if order_of(profile, MAGCACHE, order):
        raise PolicyError(
            f"{MAGCACHE} reuses and does not extrapolate; give --order 0 to export the schedule only"
        )
    if not isinstance(profile.units, Stack):
        raise PolicyError(
            f"{MAGCACHE} skips all blocks together, not units {profile.units.kind!r}; export the stack"
        )
    mask = masks_of(profile, MAGCACHE, steps)[None]
    values = {
        "threshold": THRESHOLD,
        "max_skip_steps": max(len(run) for run in mask.split("C")),
        "retention_ratio": 0.0,
        "num_inference_steps": steps,
        "mag_ratios": [BROKEN if letter == "C" else KEPT for letter in mask],
    }
    return values, (
        f"mag_ratios spell out this schedule of {steps} steps; they were not measured, so take them for no other "
        "number of steps",
    )
