"""All formats by name."""

from collections.abc import Callable
from typing import Any

from cachesmith.policies.base import MAIN
from cachesmith.policies.convert.cache_dit_yaml import from_cache_dit, to_cache_dit
from cachesmith.policies.convert.common import Converted, need_steps
from cachesmith.policies.convert.diffusers_configs import from_first_block, from_taylorseer, to_taylorseer
from cachesmith.policies.convert.l2p import from_l2p
from cachesmith.policies.convert.lists import (
    from_cached_mask,
    from_mask,
    from_smoothcache,
    from_teacache,
    to_cached_mask,
    to_mask,
)
from cachesmith.policies.convert.magcache_config import from_magcache, to_magcache
from cachesmith.policies.convert.sglang import from_sglang, to_sglang
from cachesmith.policies.document import Document
from cachesmith.policies.errors import PolicyError, refusing
from cachesmith.policies.gate import Fixed
from cachesmith.policies.policy import Policy
from cachesmith.policies.profile import Profile

SOURCES: dict[str, Callable[[object, int | None], Converted]] = {
    "cache-dit": from_cache_dit,
    "diffusers-taylorseer": from_taylorseer,
    "diffusers-magcache": from_magcache,
    "diffusers-firstblock": from_first_block,
    "smoothcache": from_smoothcache,
    "teacache": from_teacache,
    "mask": from_mask,
    "cached-mask": from_cached_mask,
    "sglang-dpcache": from_sglang,
    "l2p": from_l2p,
}
"""Name -> `read(settings, steps)`."""

ExportedProfile = tuple[Any, tuple[str, ...]]
"""Settings as plain data, and what differs there, in sentences."""

Exporter = Callable[[Policy, Profile, int, int | None, object], ExportedProfile]


def _schedule(write: Callable[[Profile, int, int | None], ExportedProfile]) -> Exporter:
    """Make an exporter of what needs to know of the profile alone."""
    return lambda policy, profile, steps, order, like: write(profile, steps, order)


TARGETS: dict[str, tuple[Exporter, str]] = {
    "cache-dit": (_schedule(to_cache_dit), "yaml"),
    "diffusers-taylorseer": (_schedule(to_taylorseer), "json"),
    "diffusers-magcache": (_schedule(to_magcache), "json"),
    "mask": (_schedule(to_mask), "text"),
    "cached-mask": (_schedule(to_cached_mask), "text"),
    "sglang-dpcache": (to_sglang, "json"),
}
"""Name -> `write(policy, profile, steps, order, like)`, which returns settings and notes, and the text's form."""


def import_settings(raw: object, source: str, steps: int | None = None, mask: str | None = None) -> Converted:
    """Read another tool's settings (plain data) as a policy bound to no model.

    steps: sampler steps, where the settings do not say. mask: one letter a step, C or F, for weights that come without
    their schedule (`l2p`). Raises `PolicyError` for an unknown format, and naming whatever
    a policy cannot express.
    """
    if source not in SOURCES:
        raise PolicyError(f"there is no format {source!r} to import; choose from {', '.join(SOURCES)}")
    if mask is not None:
        if source != "l2p":
            raise PolicyError(f"the format {source!r} says itself which steps are computed; leave --mask out")
        raw = {"weights": raw, "mask": mask}
    with refusing("the policy that these settings make"):
        return SOURCES[source](raw, steps)


def export_profile(
    policy: Policy,
    target: str,
    profile: str | None = None,
    steps: int | None = None,
    order: int | None = None,
    like: object = None,
) -> ExportedProfile:
    """Return a profile's schedule as another tool's settings (plain data), and what differs there, in sentences.

    steps: sampler steps, where neither the sampler nor a fixed mask tells. order: a Taylor order (0: reuse) in place of
    the profile's own forecaster. like: settings of the target (plain data), from which it takes what a policy does not
    hold. Raises `PolicyError` for an unknown format, and naming whatever it cannot express.
    """
    if target not in TARGETS:
        raise PolicyError(f"there is no format {target!r} to export to; choose from {', '.join(TARGETS)}")
    chosen = policy.profile(profile)
    if chosen.denoisers:
        raise PolicyError(
            f"{target} says nothing of several denoisers, and this profile is for {MAIN}, "
            f"{', '.join(chosen.denoisers)}; there is nothing to export it to"
        )
    if chosen.units.follower is not None:
        raise PolicyError(
            f"{target} computes both halves of guidance alike, and this profile some steps by half (H); "
            "export a profile without a follower"
        )
    count = steps or _steps(policy.document, chosen)
    if like is not None and target != "sglang-dpcache":
        raise PolicyError(f"{target} needs nothing beside the policy; leave --like out")
    return TARGETS[target][0](policy, chosen, need_steps(count, "the policy"), order, like)


def _steps(document: Document, profile: Profile) -> int | None:
    if document.sampler is not None:
        return document.sampler.steps
    return len(profile.gate.mask) if isinstance(profile.gate, Fixed) else None
