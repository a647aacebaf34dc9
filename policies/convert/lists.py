"""Settings that are lists: step masks, SmoothCache's schedules, TeaCache's coefficients."""

from typing import Any

from pydantic import Field

from cachesmith.policies.base import Frozen
from cachesmith.policies.convert.common import Converted, letters, parse, row, wrap
from cachesmith.policies.document import Profile
from cachesmith.policies.errors import PolicyError
from cachesmith.policies.forecaster import Forecaster
from cachesmith.policies.gate import Fixed
from cachesmith.policies.presets.presets import preset
from cachesmith.policies.units import Modules, Stack

COMPONENTS = {
    "attn": "attn", "attn1": "attn", "attn2": "cross", "mlp": "mlp", "ff": "mlp",
    "cross": "cross", "single": "single", "mlp_context": "mlp_context",
}  # fmt: skip
"""SmoothCache's layer kinds (its DiT fork and its diffusers helper) -> our unit groups."""
GROUPS = tuple(dict.fromkeys(COMPONENTS.values()))


class TeaCacheFields(Frozen):
    """A polynomial, highest power first, and the accumulated change from which a step is computed."""

    coefficients: list[float] = Field(min_length=1, max_length=9)
    threshold: float = Field(gt=0)


def from_mask(raw: object, steps: int | None) -> Converted:
    """Read one flag a step, 1 = compute: `1011...`, `CFCC...` or a list. The stack is reused at the other steps."""
    mask = _mask(raw, "the mask")
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
    everything = dict.fromkeys(GROUPS, "C" * length)
    gate = Fixed(mask="C" * length, groups={g: m for g, m in masks.items() if m != everything[g]})
    profile = Profile(units=Modules(), gate=gate, forecaster=Forecaster(rows=row(0)))
    if steps not in (None, length):
        raise PolicyError(f"the schedule has {length} entries for {steps} steps; give one per step")
    return wrap("smoothcache", profile)


def from_teacache(raw: object, steps: int | None) -> Converted:
    """Read TeaCache's `coefficients` (arXiv 2411.19108) and `threshold`, which its scripts call `rel_l1_thresh`."""
    if isinstance(raw, dict) and "threshold" not in raw:
        raw = {"threshold" if name == "rel_l1_thresh" else name: value for name, value in raw.items()}
    fields = parse(TeaCacheFields, raw, "TeaCache's settings")
    return Converted(preset("teacache", threshold=fields.threshold, polynomial=tuple(fields.coefficients)))


def _mask(raw: Any, subject: str) -> str:
    flags = list(raw.strip().replace("C", "1").replace("F", "0")) if isinstance(raw, str) else raw
    # JSON and YAML read a bare 1011 as a number
    flags = list(str(flags)) if isinstance(flags, int) else flags
    if not isinstance(flags, list) or any(str(flag) not in ("0", "1") for flag in flags):
        raise PolicyError(f"{subject} must hold one 0 or 1 a step, as a list or as text; change it")
    return letters([str(flag) == "1" for flag in flags], subject)
