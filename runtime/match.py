"""Does a policy fit the model and sampler at hand? Every difference has an action.

The pipeline's class is not compared: an img2img pipeline may run the same model.
"""

import warnings
from collections.abc import Sequence
from math import isclose
from typing import Any

from torch import nn

from cachesmith.policies import Action, Fixed, Mismatch, Policy, PolicyError, Profile, remap
from cachesmith.runtime.engines.drop_weights import present_weights
from cachesmith.runtime.models.fingerprint import config_hash, lora_names
from cachesmith.runtime.plan.plan import has_fitted

FEW_STEPS = 8
"""Below this many steps there is nothing worth forecasting."""

SLACK = 1e-6
"""Guidance scales are typed, not computed."""


def check_model(policy: Policy, transformer: nn.Module) -> bool:
    """Compare the model; return False when the policy is to be disabled. Raises `PolicyError`.

    Weights that are offloaded to where they cannot be read are not compared.
    """
    expected, actions = policy.document.model, policy.document.mismatch
    if expected is None:
        return True
    keys: list[tuple[str, str, Any, Any]] = [
        ("model", "the transformer class", expected.transformer, type(transformer).__name__),
        ("config", "the transformer configuration", expected.config_hash, config_hash(transformer)),
        ("adapters", "the LoRA adapters", expected.adapters, lora_names(transformer)),
    ]
    weights = None if expected.weights_hash is None else present_weights(transformer)
    if weights is not None:
        keys.append(("weights", "the weights", expected.weights_hash, weights))
    kept = [_act(actions, key, what, was, now) for key, what, was, now in keys if was != now]
    return all(kept)


def check_scheduler(policy: Policy, scheduler: Any) -> bool:
    """Compare the scheduler's class; return False when the policy is to be disabled. Raises `PolicyError`."""
    expected, present = policy.document.sampler, type(scheduler).__name__
    if expected is None or expected.scheduler == present:
        return True
    return _act(policy.document.mismatch, "scheduler", "the scheduler", expected.scheduler, present)


def check_guidance(policy: Policy, branches: int) -> bool:
    """Compare the guidance with the number of branches seen in one step; return False to disable the policy.

    One branch may be guided in a batch or not at all: those two are not told apart.
    """
    expected = policy.document.sampler
    if expected is None or (expected.guidance == "sequential") == (branches > 1):
        return True
    present = "sequential" if branches > 1 else "batched or none"
    return _act(policy.document.mismatch, "guidance", "guidance", expected.guidance, present)


def check_scale(policy: Policy, scale: float | None) -> bool:
    """Compare the guidance scale, where the pipeline tells it; return False to disable the policy."""
    fitted = None if policy.document.sampler is None else policy.document.sampler.guidance_range
    if fitted is None or scale is None or fitted[0] - SLACK <= scale <= fitted[1] + SLACK:
        return True
    expected = " to ".join(f"{bound:g}" for bound in dict.fromkeys(fitted))
    return _act(policy.document.mismatch, "guidance", "a guidance scale of", expected, f"{scale:g}")


def fit_profile(policy: Policy, profile: Profile, sigmas: Sequence[float]) -> Profile | None:
    """Fit a profile to the run's noise levels: unchanged, remapped by sigma, or None for `compute everything`.

    Raises `PolicyError` when the action for the difference is `error`.
    """
    actions, steps = policy.document.mismatch, len(sigmas)
    if steps < FEW_STEPS and not _act(
        actions, "few_steps", "a number of steps of", f"{FEW_STEPS} or more", steps
    ):
        return None
    expected = policy.document.sampler
    if expected is None or _same(expected.sigmas, sigmas):
        return profile
    key = "sigmas" if steps == expected.steps else "steps"
    if getattr(actions, key) == "remap":
        return _remapped(profile, expected.sigmas, sigmas)
    return profile if _act(actions, key, "noise levels of", *_told(expected.sigmas, sigmas)) else None


def _remapped(profile: Profile, old: Sequence[float], new: Sequence[float]) -> Profile:
    """Move a mask to the new noise levels; other gates fit any. Fitted weights stay with the steps they are for."""
    if has_fitted(profile) and len(old) == len(new):
        was, now = _told(old, new)
        warnings.warn(
            f"the weights were fitted for {was}, but this sampler takes {now}; expect a larger error, or "
            "recalibrate with this sampler",
            RuntimeWarning,
            stacklevel=2,
        )
    if not isinstance(profile.gate, Fixed) or has_fitted(profile):
        return profile
    groups = {name: remap(letters, old, new) for name, letters in profile.gate.groups.items()}
    return profile.model_copy(update={"gate": Fixed(mask=remap(profile.gate.mask, old, new), groups=groups)})


def _told(*schedules: Sequence[float]) -> list[str]:
    return [f"{len(sigmas)} steps from {sigmas[0]:.4g} to {sigmas[-1]:.4g}" for sigmas in schedules]


def _same(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(
        isclose(x, y, rel_tol=1e-3, abs_tol=1e-6) for x, y in zip(a, b, strict=True)
    )


def _act(actions: Mismatch, key: str, what: str, expected: Any, present: Any) -> bool:
    """Carry out the action for a mismatch; return whether the policy stays in use."""
    action: Action = getattr(actions, key)
    message = f"the policy was made for {what} {_short(expected)}, but this is {_short(present)}"
    match action:
        case "error" | "remap":
            raise PolicyError(f"{message}; calibrate for it, or set mismatch.{key} in the policy")
        case "disable":
            warnings.warn(f"{message}; caching is off", RuntimeWarning, stacklevel=3)
            return False
        case "warn":
            warnings.warn(message, RuntimeWarning, stacklevel=3)
            return True


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text
