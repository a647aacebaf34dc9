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
    parse_settings,
    row,
    wrap,
)
from cachesmith.policies.errors import PolicyError
from cachesmith.policies.forecaster import Forecaster
from cachesmith.policies.gate import Fixed
from cachesmith.policies.presets.presets import preset
from cachesmith.policies.profile import Profile
from cachesmith.policies.units import Modules, Segments, Stack

TAYLOR = "diffusers' TaylorSeerCacheConfig"
DTYPE = "taylor_factors_dtype is a string in JSON: give TaylorSeerCacheConfig the torch.dtype of that name"
LITE = "lite mode forecasts the last projection; this policy forecasts what all blocks add, just before it"
MODULES = [
    r".*\.(attn|attn1|attn2|attention|ff|ff_context|ffn|feed_forward|img_mlp|txt_mlp)",
    r"single_transformer_blocks\.\d+\.proj_out",
]
"""`cache_identifiers` of every unit. A single-stream block's output is that of its last projection."""
SKIPPED = [r"single_transformer_blocks\.\d+\.proj_mlp"]
"""What need not be computed once that projection is forecast."""
ATTENTION = [r"(?!single_).*\.(attn|attn1|attention)"]
"""The same of attention alone. diffusers' own default matches modules named `attn` only, so not DiT's `attn1`."""
NOT_ATTENTION = ("attn_image", "cross", "mlp", "mlp_context", "single")


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


class FirstBlockFields(Frozen):
    """`FirstBlockCacheConfig`."""

    threshold: float = Field(default=0.05, ge=0)


def from_taylorseer(raw: object, steps: int | None) -> Converted:
    """Read a `TaylorSeerCacheConfig`: attention outputs forecast, everything else computed; lite: the whole stack.

    The one step between warm-up and the first interval is forecast, as diffusers does.
    """
    fields = parse_settings(TaylorSeerFields, raw, TAYLOR)
    named = (fields.cache_identifiers, fields.skip_predict_identifiers)
    if not fields.use_lite_mode and named not in ((None, None), (ATTENTION, None), (MODULES, SKIPPED)):
        raise PolicyError(
            f"{TAYLOR} names modules of one model by patterns, which a policy cannot; leave the identifiers out"
        )
    count = need_steps(steps, TAYLOR)
    mask = letters([fields.computes(step) for step in range(count)], TAYLOR)
    notes = ["taylor_factors_dtype is not kept: features stay in the model's own precision"]
    if fields.use_lite_mode:
        notes.append(LITE)
    elif fields.cache_identifiers is None:
        notes.append(
            "without cache_identifiers diffusers forecasts modules named `attn`: none in DiT and Wan, but in FLUX also "
            "those inside single-stream blocks; this policy forecasts attention that is a unit of its own, by any name"
        )
    whole = fields.use_lite_mode or fields.cache_identifiers == MODULES
    groups = {} if whole else dict.fromkeys(NOT_ATTENTION, "C" * count)
    profile = Profile(
        units=Stack() if fields.use_lite_mode else Modules(),
        gate=Fixed(mask=mask, groups=groups),
        forecaster=Forecaster(rows=row(fields.max_order)),
    )
    return wrap("taylorseer", profile, *notes)


def from_first_block(raw: object, steps: int | None) -> Converted:
    """Read a `FirstBlockCacheConfig`."""
    fields = parse_settings(FirstBlockFields, raw, "diffusers' FirstBlockCacheConfig")
    return Converted(preset("fbcache", threshold=fields.threshold))


def to_taylorseer(profile: Profile, steps: int, order: int | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the `TaylorSeerCacheConfig` that computes the same modules at the same steps; of the stack, in lite mode.

    Raises `PolicyError` where none does: diffusers' intervals begin one step after its warm-up.
    """
    found = order_of(profile, TAYLOR, order)
    masks = masks_of(profile, TAYLOR, steps)
    if isinstance(profile.units, Segments):
        raise PolicyError(f"{TAYLOR} caches modules, or all blocks, not segments; export it to cache-dit")
    own = {name: letters for name, letters in masks.items() if name}
    attention_only = isinstance(profile.units, Modules) and own == dict.fromkeys(NOT_ATTENTION, "C" * steps)
    if own and not attention_only:
        raise PolicyError(f"{TAYLOR} has one schedule and this profile one for {', '.join(own)}; merge them")
    chosen, notes = _modules(profile, attention_only)
    order_and_type = {"max_order": found, "taylor_factors_dtype": "torch.float32"}
    return {**_search(masks[None], steps), **order_and_type, **chosen}, (DTYPE, *notes)


def _modules(profile: Profile, attention_only: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the fields that say what is forecast, and what differs."""
    if isinstance(profile.units, Stack):
        return {"use_lite_mode": True}, (LITE,)
    if attention_only:
        return {"cache_identifiers": ATTENTION}, (
            "blocks of single_transformer_blocks are computed at every step",
        )
    return {"cache_identifiers": MODULES, "skip_predict_identifiers": SKIPPED}, ()


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
        "interval and so on; use an interval with warmup 1"
    )


_SCHEDULE = {"cache_interval", "disable_cache_before_step", "disable_cache_after_step"}
