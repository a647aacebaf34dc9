"""All formats by name."""

from collections.abc import Callable
from typing import Any

from cachesmith.policies.convert.cache_dit_yaml import from_cache_dit, to_cache_dit
from cachesmith.policies.convert.common import Converted, need_steps
from cachesmith.policies.convert.diffusers_configs import (
    from_first_block,
    from_magcache,
    from_taylorseer,
    to_taylorseer,
)
from cachesmith.policies.convert.lists import from_mask, from_smoothcache, from_teacache
from cachesmith.policies.document import Document, Profile
from cachesmith.policies.errors import PolicyError, refusing
from cachesmith.policies.gate import Fixed
from cachesmith.policies.policy import Policy

SOURCES: dict[str, Callable[[object, int | None], Converted]] = {
    "cache-dit": from_cache_dit,
    "diffusers-taylorseer": from_taylorseer,
    "diffusers-magcache": from_magcache,
    "diffusers-firstblock": from_first_block,
    "smoothcache": from_smoothcache,
    "teacache": from_teacache,
    "mask": from_mask,
}
"""Name -> `read(settings, steps)`."""

Exporter = Callable[[Profile, int, int | None], tuple[dict[str, Any], tuple[str, ...]]]
TARGETS: dict[str, tuple[Exporter, str]] = {
    "cache-dit": (to_cache_dit, "yaml"),
    "diffusers-taylorseer": (to_taylorseer, "json"),
}
"""Name -> `write(profile, steps, order)`, which returns settings and notes, and the text's form."""


def import_settings(raw: object, source: str, steps: int | None = None) -> Converted:
    """Read another tool's settings (plain data) as a policy bound to no model.

    steps: sampler steps, where the settings do not say. Raises `PolicyError` for an unknown format, and naming whatever
    a policy cannot express.
    """
    if source not in SOURCES:
        raise PolicyError(f"there is no format {source!r} to import; choose from {', '.join(SOURCES)}")
    with refusing("the policy that these settings make"):
        return SOURCES[source](raw, steps)


def export_profile(
    policy: Policy,
    target: str,
    profile: str | None = None,
    steps: int | None = None,
    order: int | None = None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a profile's schedule as another tool's settings (plain data), and what differs there, in sentences.

    steps: sampler steps, where neither the sampler nor a fixed mask tells. order: a Taylor order (0: reuse) in place of
    the profile's own forecaster. Raises `PolicyError` for an unknown format, and naming whatever it cannot express.
    """
    if target not in TARGETS:
        raise PolicyError(f"there is no format {target!r} to export to; choose from {', '.join(TARGETS)}")
    chosen = policy.profile(profile)
    if chosen.units.follower is not None:
        raise PolicyError(
            f"{target} computes both halves of guidance alike, and this profile some steps by half (H); "
            "export a profile without a follower"
        )
    count = steps or _steps(policy.document, chosen)
    return TARGETS[target][0](chosen, need_steps(count, "the policy"), order)


def _steps(document: Document, profile: Profile) -> int | None:
    if document.sampler is not None:
        return document.sampler.steps
    return len(profile.gate.mask) if isinstance(profile.gate, Fixed) else None
