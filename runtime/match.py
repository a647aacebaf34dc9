"""Does a policy fit the pipeline at hand? Every key is compared; every difference has an action."""

import warnings
from collections.abc import Sequence
from math import isclose
from typing import Any

from cachesmith.policies import Action, Fixed, ModelKey, Policy, PolicyError, Profile, remap

FEW_STEPS = 8
"""Below this many steps there is nothing worth forecasting."""


def check_model(policy: Policy, present: ModelKey) -> bool:
    """Compare the model; return False when the policy is to be disabled. Raises `PolicyError`."""
    expected, actions = policy.document.model, policy.document.mismatch
    if expected is None:
        return True
    pairs: list[tuple[Action, str, Any, Any]] = [
        (actions.model, "transformer class", expected.transformer, present.transformer),
        (actions.config, "transformer configuration", expected.config_hash, present.config_hash),
        (actions.adapters, "LoRA adapters", expected.adapters, present.adapters),
    ]
    if expected.weights_hash is not None:
        pairs.append((actions.weights, "weights", expected.weights_hash, present.weights_hash))
    return all([_act(action, what, a, b) for action, what, a, b in pairs if a != b])


def check_scheduler(policy: Policy, scheduler: Any) -> bool:
    """Compare the scheduler's class; return False when the policy is to be disabled. Raises `PolicyError`."""
    expected = policy.document.sampler
    present = type(scheduler).__name__
    if expected is None or expected.scheduler == present:
        return True
    return _act(policy.document.mismatch.scheduler, "scheduler", expected.scheduler, present)


def fit_profile(policy: Policy, profile: Profile, sigmas: Sequence[float]) -> Profile | None:
    """Fit a profile to the run's noise levels: unchanged, remapped by sigma, or None for `compute everything`.

    Raises `PolicyError` when the step count differs and the gate cannot be remapped.
    """
    actions = policy.document.mismatch
    if len(sigmas) < FEW_STEPS and not _act(actions.few_steps, "number of steps", f"{FEW_STEPS} or more", len(sigmas)):
        return None
    expected = policy.document.sampler
    if expected is None or _same(expected.sigmas, sigmas):
        return profile
    action = actions.steps if len(sigmas) != expected.steps else actions.sigmas
    if action == "remap" and isinstance(profile.gate, Fixed):
        return _remapped(profile, profile.gate, expected.sigmas, sigmas)
    if action == "remap":
        return profile
    what = f"noise schedule ({expected.steps} steps)", f"another one ({len(sigmas)} steps)"
    return profile if _act(action, "noise schedule", *what) else None


def _remapped(profile: Profile, gate: Fixed, old: Sequence[float], new: Sequence[float]) -> Profile:
    groups = {name: remap(letters, old, new) for name, letters in gate.groups.items()}
    moved = Fixed(mask=remap(gate.mask, old, new), groups=groups)
    return profile.model_copy(update={"gate": moved})


def _same(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(isclose(x, y, rel_tol=1e-3, abs_tol=1e-6) for x, y in zip(a, b, strict=True))


def _act(action: Action, what: str, expected: Any, present: Any) -> bool:
    """Carry out one action; return whether the policy stays in use."""
    message = f"the policy was made for {what} {_short(expected)}, but this is {_short(present)}"
    match action:
        case "error" | "remap":
            raise PolicyError(f"{message}; recalibrate, or set mismatch.{what.split()[0]} in the policy")
        case "disable":
            warnings.warn(f"{message}; caching is off for this run", RuntimeWarning, stacklevel=3)
            return False
        case "warn":
            warnings.warn(message, RuntimeWarning, stacklevel=3)
    return True


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text
