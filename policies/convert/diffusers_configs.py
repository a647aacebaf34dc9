"""diffusers' cache configs (`diffusers.hooks`, 0.42) as plain fields, and their meaning as policies."""

from typing import Any

from pydantic import Field

from cachesmith.policies.base import Frozen
from cachesmith.policies.convert.common import (
    Converted,
    letters,
    masks_of,
    need_steps,
    order_of,
    parse,
    row,
    wrap,
)
from cachesmith.policies.document import Profile
from cachesmith.policies.errors import PolicyError
from cachesmith.policies.forecaster import Forecaster
from cachesmith.policies.gate import Fixed
from cachesmith.policies.magcache import resample_ratios
from cachesmith.policies.presets import preset
from cachesmith.policies.units import Modules, Stack

TAYLOR = "diffusers' TaylorSeerCacheConfig"
MODULES = [r".*\.(attn|attn1|attn2|attention|ff|ff_context|ffn|feed_forward|img_mlp|txt_mlp)"]
"""`cache_identifiers` of every module that is a unit of its own."""
ATTENTION = [r".*\.(attn|attn1|attention)"]
"""The same of attention alone. diffusers' own default matches modules named `attn` only, so not DiT's `attn1`."""
NOT_ATTENTION = ("mlp", "mlp_context")


class TaylorSeerFields(Frozen):
    """`TaylorSeerCacheConfig`."""

    cache_interval: int = Field(default=5, ge=1, le=1000)
    disable_cache_before_step: int = Field(default=3, ge=-1000, le=10_000)
    disable_cache_after_step: int | None = Field(default=None, ge=0)
    max_order: int = Field(default=1, ge=0, le=4)
    taylor_factors_dtype: str | None = "torch.bfloat16"
    skip_predict_identifiers: list[str] | None = None
    cache_identifiers: list[str] | None = None
    use_lite_mode: bool = False

    def computes(self, step: int) -> bool:
        """Whether diffusers computes `step`: after d warm-up steps, d + 1, d + 1 + interval, and so on."""
        before, after = self.disable_cache_before_step, self.disable_cache_after_step
        on_interval = (step - before - 1) % self.cache_interval == 0
        return step < before or on_interval or (after is not None and step >= after)


class MagCacheFields(Frozen):
    """`MagCacheConfig`."""

    threshold: float = Field(default=0.06, ge=0)
    max_skip_steps: int = Field(default=3, ge=0)
    retention_ratio: float = Field(default=0.2, ge=0, le=1)
    num_inference_steps: int = Field(default=28, ge=1, le=10_000)
    mag_ratios: list[float] = Field(min_length=1, max_length=10_000)
    calibrate: bool = False


class FirstBlockFields(Frozen):
    """`FirstBlockCacheConfig`."""

    threshold: float = Field(default=0.05, ge=0)


def from_taylorseer(raw: object, steps: int | None) -> Converted:
    """Read a `TaylorSeerCacheConfig`: attention outputs forecast, everything else computed; lite: the whole stack.

    The one step between warm-up and the first interval is forecast, as diffusers does.
    """
    fields = parse(TaylorSeerFields, raw, TAYLOR)
    if not fields.use_lite_mode and (
        fields.skip_predict_identifiers or fields.cache_identifiers not in (None, MODULES, ATTENTION)
    ):
        raise PolicyError(
            f"{TAYLOR} names modules of one model by patterns, which a policy cannot; leave the identifiers out"
        )
    count = need_steps(steps, TAYLOR)
    mask = letters([fields.computes(step) for step in range(count)], TAYLOR)
    notes = ["taylor_factors_dtype is not kept: features stay in the model's own precision"]
    if fields.use_lite_mode:
        notes.append(
            "lite mode forecasts the last projection; this policy forecasts what all blocks add, just before it"
        )
    whole = fields.use_lite_mode or fields.cache_identifiers == MODULES
    groups = {} if whole else dict.fromkeys(NOT_ATTENTION, "C" * count)
    profile = Profile(
        units=Stack() if fields.use_lite_mode else Modules(),
        gate=Fixed(mask=mask, groups=groups),
        forecaster=Forecaster(rows=row(fields.max_order)),
    )
    return wrap("taylorseer", profile, *notes)


def from_magcache(raw: object, steps: int | None) -> Converted:
    """Read a `MagCacheConfig` with ratios: its decisions read no tensor, so they become a fixed schedule."""
    fields = parse(MagCacheFields, raw, "diffusers' MagCacheConfig")
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


def from_first_block(raw: object, steps: int | None) -> Converted:
    """Read a `FirstBlockCacheConfig`."""
    fields = parse(FirstBlockFields, raw, "diffusers' FirstBlockCacheConfig")
    return Converted(preset("fbcache", threshold=fields.threshold))


def to_taylorseer(profile: Profile, steps: int, order: int | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the `TaylorSeerCacheConfig` that computes the same modules at the same steps.

    Raises `PolicyError` where none does: diffusers' intervals begin one step after its warm-up.
    """
    found = order_of(profile, TAYLOR, order)
    masks = masks_of(profile, TAYLOR, steps)
    if not isinstance(profile.units, Modules):
        raise PolicyError(
            f"{TAYLOR} caches modules, not units {profile.units.kind!r}; export it to cache-dit"
        )
    attention_only = {name: m for name, m in masks.items() if name} == dict.fromkeys(
        NOT_ATTENTION, "C" * steps
    )
    if len(masks) > 1 and not attention_only:
        raise PolicyError(
            f"{TAYLOR} has one schedule and this profile one for {', '.join(n for n in masks if n)}; merge them"
        )
    fields = _search(masks[None], steps)
    chosen: dict[str, Any] = {"max_order": found, "taylor_factors_dtype": "torch.float32"}
    chosen["cache_identifiers"] = ATTENTION if attention_only else MODULES
    notes = (
        "taylor_factors_dtype is a string in JSON: give TaylorSeerCacheConfig the torch.dtype of that name",
    )
    return {**fields, **chosen}, notes


def _search(mask: str, steps: int) -> dict[str, int]:
    """Find warm-up, interval and tail that give `mask`; the plainest first."""
    tail = len(mask) - len(mask.rstrip("C"))
    for after in (None, *([steps - tail] if tail else [])):
        for interval in range(1, min(steps, 1000) + 1):
            for before in (*range(1, steps + 1), -1):
                fields = TaylorSeerFields(
                    cache_interval=interval, disable_cache_before_step=before, disable_cache_after_step=after
                )
                if all(fields.computes(s) == (letter == "C") for s, letter in enumerate(mask)):
                    return {k: v for k, v in fields.model_dump(include=_SCHEDULE).items() if v is not None}
    raise PolicyError(
        f"{TAYLOR} cannot express the schedule {mask[:60]}: after d warm-up steps it computes steps d + 1, d + 1 + "
        "interval and so on; use an interval with warmup 1, or export to cache-dit"
    )


_SCHEDULE = {"cache_interval", "disable_cache_before_step", "disable_cache_after_step"}
