"""Settings that are lists: step masks, SmoothCache's schedules, TeaCache's coefficients."""

from typing import Any

from pydantic import Field

from cachesmith.policies.base import Frozen
from cachesmith.policies.convert.common import (
    Converted,
    letters,
    masks_of,
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
from cachesmith.policies.units import Modules, Stack

COMPONENTS = {
    "attn": "attn", "attn1": "attn", "attn2": "cross", "mlp": "mlp", "ff": "mlp",
    "cross": "cross", "single": "single", "mlp_context": "mlp_context",
}  # fmt: skip
"""SmoothCache's layer kinds (its DiT fork and its diffusers helper) -> our unit groups."""
SPX = "video_spx.schedule.v1"
CACHED = "the mask of cached steps"
CACHED_HINT = "begin with a 1, or read it with --from cached-mask if 1 means cached there"
COMPUTED_HINT = "begin with a 0, or read it with --from mask if 1 means computed there"
_GROUPS = tuple(dict.fromkeys(COMPONENTS.values()))


class TeaCacheFields(Frozen):
    """A polynomial, highest power first, and the accumulated change from which a step is computed."""

    coefficients: list[float] = Field(min_length=1, max_length=9)
    threshold: float = Field(gt=0)


def from_mask(raw: object, steps: int | None) -> Converted:
    """Read one flag a step, 1 = compute: `1011...`, `CFCC...` or a list. The stack is reused at the other steps."""
    return _reusing(_mask(raw, "the mask"), steps)


def from_cached_mask(raw: object, steps: int | None) -> Converted:
    """Read one flag a step, 1 = cached, 0 = compute: the bitstrings of BudCache and of the Golden Path Hypothesis.

    Of the latter's `video_spx.schedule.v1` the field `bits` is read, and compared with `cache_steps`.
    """
    if isinstance(raw, dict):
        raw = _bits(raw)
    flags = _flags(raw, CACHED)
    return _reusing(letters([flag == "0" for flag in flags], CACHED, COMPUTED_HINT), steps)


def to_mask(profile: Profile, steps: int, order: int | None) -> tuple[str, tuple[str, ...]]:
    """Return one letter a step, 1 = compute."""
    return _schedule(profile, steps, order).replace("C", "1").replace("F", "0"), ()


def to_cached_mask(profile: Profile, steps: int, order: int | None) -> tuple[str, tuple[str, ...]]:
    """Return one letter a step, 1 = cached."""
    return _schedule(profile, steps, order).replace("C", "0").replace("F", "1"), ()


def _schedule(profile: Profile, steps: int, order: int | None) -> str:
    """The mask of all blocks. Raises `PolicyError` where the forecaster would be lost, or units differ."""
    if order_of(profile, "a mask", order):
        raise PolicyError(
            "a mask does not say how steps are forecast; give --order 0 to export it all the same"
        )
    masks = masks_of(profile, "a mask", steps)
    if not isinstance(profile.units, Stack) or len(masks) > 1:
        raise PolicyError("a mask schedules all blocks together; export a profile whose unit is the stack")
    return masks[None]


def _reusing(mask: str, steps: int | None) -> Converted:
    if steps not in (None, len(mask)):
        raise PolicyError(f"the mask has {len(mask)} entries for {steps} steps; give one per step")
    return wrap("mask", Profile(units=Stack(), gate=Fixed(mask=mask), forecaster=Forecaster(rows=row(0))))


def from_smoothcache(raw: object, steps: int | None) -> Converted:
    """Read SmoothCache's JSON (arXiv 2411.10510): per layer kind a list, 1 = compute, 0 = reuse.

    Kinds that are not listed are computed at every step.
    """
    if not isinstance(raw, dict) or not raw:
        raise PolicyError("a SmoothCache schedule must map layer kinds, such as attn1, to lists of 0 and 1")
    masks: dict[str, str] = {}
    for kind, flags in raw.items():
        group = COMPONENTS.get(str(kind))
        if group is None or group in masks:
            raise PolicyError(
                f"cannot read the layer kind {str(kind)[:80]!r}; "
                f"give each of these at most once: {', '.join(COMPONENTS)}"
            )
        masks[group] = _mask(flags, f"the schedule of {kind}")
    length = len(next(iter(masks.values())))
    everything = dict.fromkeys(_GROUPS, "C" * length)
    gate = Fixed(mask="C" * length, groups={g: m for g, m in masks.items() if m != everything[g]})
    profile = Profile(units=Modules(), gate=gate, forecaster=Forecaster(rows=row(0)))
    if steps not in (None, length):
        raise PolicyError(f"the schedule has {length} entries for {steps} steps; give one per step")
    return wrap("smoothcache", profile)


def from_teacache(raw: object, steps: int | None) -> Converted:
    """Read TeaCache's `coefficients` (arXiv 2411.19108) and `threshold`, which its scripts call `rel_l1_thresh`."""
    if isinstance(raw, dict) and "threshold" not in raw:
        raw = {"threshold" if name == "rel_l1_thresh" else name: value for name, value in raw.items()}
    fields = parse_settings(TeaCacheFields, raw, "TeaCache's settings")
    return Converted(preset("teacache", threshold=fields.threshold, polynomial=tuple(fields.coefficients)))


def _mask(raw: Any, subject: str) -> str:
    return letters([flag == "1" for flag in _flags(raw, subject)], subject, CACHED_HINT)


def _bits(raw: dict[Any, Any]) -> object:
    if raw.get("schema") != SPX or "bits" not in raw:
        raise PolicyError(
            f"{CACHED} must be text, a list, or an object of schema {SPX} with `bits`; give one of these"
        )
    bits, cached = raw["bits"], raw.get("cache_steps")
    if cached is not None and cached != [step for step, flag in enumerate(str(bits)) if flag == "1"]:
        raise PolicyError("cache_steps are other steps than those with a 1 in bits; correct the file")
    return bits


def _flags(raw: Any, subject: str) -> list[str]:
    flags = list(raw.strip().replace("C", "1").replace("F", "0")) if isinstance(raw, str) else raw
    # JSON and YAML read a bare 1011 as a number
    flags = list(str(flags)) if isinstance(flags, int) else flags
    if not isinstance(flags, list) or any(str(flag) not in ("0", "1") for flag in flags):
        raise PolicyError(f"{subject} must hold one 0 or 1 a step, as a list or as text; change it")
    return [str(flag) for flag in flags]
