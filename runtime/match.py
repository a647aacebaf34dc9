"""Does a policy fit the model and sampler at hand? Every difference has an action, and is told once a session.

The pipeline's class is not compared: an img2img pipeline may run the same model.
"""

import re
import warnings
from collections.abc import Collection, Sequence
from math import isclose
from typing import Any

from torch import nn

from cachesmith.policies import (
    MAIN,
    Action,
    Fixed,
    ModelKey,
    Policy,
    PolicyError,
    Profile,
    SamplerKey,
    Size,
    fixed_mask,
    remap,
)
from cachesmith.policies.profile import has_fitted
from cachesmith.runtime.models.fingerprint import config_hash, facts, lora_names, scheduler_settings
from cachesmith.runtime.models.snapshot import Network
from cachesmith.runtime.models.weights import present_weights, same_weights, weights_sketch
from cachesmith.runtime.pipeline_call import PipelineCall

FEW_STEPS = 8
"""Below this many steps there is nothing worth forecasting for a policy that was not made for so few."""

_SLACK = 1e-6
"""Guidance scales are typed, not computed."""

LEVELS = re.compile(r"beta|shift|sigmas$|sigma_|spacing|steps_offset|num_train_timesteps|^rho$")
"""Settings of a scheduler that only shape its noise levels, which are compared themselves."""

_SHOWN = 4
"""Settings of a scheduler that one message names."""


class Match:
    """One policy, held against what it is used on: `model` and `sampling` say whether it stays in use.

    Raises `PolicyError` where the action for a difference is `error`.
    """

    def __init__(self, policy: Policy):
        self.policy = policy
        self._said: set[str] = set()

    def model(self, network: Network) -> bool:
        """Compare the model as it is now.

        Weights that are offloaded to where they cannot be read, or quantised in another way, are not compared.
        """
        expected = self.policy.document.model
        if expected is None:
            return True
        transformer, present = network.root, facts(network)
        compared = [
            ("adapters", "the LoRA adapters", *_adapters(expected, transformer, present)),
            ("dtype", "the dtype", expected.dtype, present["dtype"]),
            ("quantization", "the quantization", expected.quantization, present["quantization"]),
            ("attention", "the attention backend", expected.attention, present["attention"]),
        ]
        kept = [self.architecture(transformer)]
        kept += [self._same(key, what, was, now) for key, what, was, now in compared]
        readable = expected.quantization in (None, present["quantization"])
        if readable and not _same_weights(expected, network):
            kept.append(self._act("weights", "the weights", _hash(expected), "a model with others"))
        return all(kept)

    def architecture(self, transformer: nn.Module) -> bool:
        """Compare the class and the configuration: all that can be, of a model without weights."""
        expected = self.policy.document.model
        if expected is None:
            return True
        compared = [
            ("model", "the transformer class", expected.transformer, type(transformer).__name__),
            ("config", "the transformer configuration", expected.config_hash, config_hash(transformer)),
        ]
        kept = [self._same(key, what, was, now) for key, what, was, now in compared]
        return all(kept)

    def sampling(self, scheduler: Any, call: PipelineCall) -> bool:
        """Compare the sampler, and what the pipeline was asked for."""
        expected = self.policy.document.sampler
        if expected is None:
            return True
        kept = [self._same("scheduler", "the scheduler", expected.scheduler, type(scheduler).__name__)]
        if expected.scheduler == type(scheduler).__name__:
            kept.append(self._settings(expected, scheduler_settings(scheduler)))
        kept += [self._scale(expected, name, scale) for name, scale in call.scales.items()]
        kept.append(self._size(expected, call))
        return all(kept)

    def profile(self, profile: Profile, sigmas: Sequence[float]) -> Profile | None:
        """Fit a profile to the run's noise levels: unchanged, remapped, or None for `compute everything`."""
        actions, steps = self.policy.document.mismatch, len(sigmas)
        expected = self.policy.document.sampler
        made_for = len(fixed_mask(profile) or "") if expected is None else expected.steps
        few = steps < FEW_STEPS and made_for != steps
        if few and not self._act("few_steps", "a number of steps of", f"{FEW_STEPS} or more", steps):
            return None
        if expected is None or _same_levels(expected.sigmas, sigmas):
            return profile
        key = "sigmas" if steps == expected.steps else "steps"
        if getattr(actions, key) == "remap":
            return self._remapped(profile, expected.sigmas, sigmas)
        return profile if self._act(key, "noise levels of", *_levels(expected.sigmas, sigmas)) else None

    def _settings(self, expected: SamplerKey, present: dict[str, Any]) -> bool:
        was = expected.settings
        if was is None:
            return True
        both = [name for name in sorted(was.keys() & present.keys()) if not LEVELS.search(name)]
        other = [name for name in both if not _alike(was[name], present[name])]
        if not other:
            return True
        told = [", ".join(f"{n} {values[n]}" for n in other[:_SHOWN]) for values in (was, present)]
        return self._act("scheduler", f"the {expected.scheduler} with", *told)

    def _scale(self, expected: SamplerKey, name: str, scale: float) -> bool:
        ranges = expected.every_scale
        # a strength inside an argument, as of a LoRA, is 1 where it is not given
        low, high = ranges.get(name, (1.0, 1.0) if ranges and "." in name else (scale, scale))
        if low - _SLACK <= scale <= high + _SLACK:
            return True
        was = " to ".join(f"{bound:g}" for bound in dict.fromkeys((low, high)))
        return self._act("guidance", f"a {name.replace('_', ' ')} of", was, f"{scale:g}")

    def _size(self, expected: SamplerKey, call: PipelineCall) -> bool:
        if not expected.sizes or not call.latents or any(s.latents == call.latents for s in expected.sizes):
            return True
        sizes = " or ".join(str(size) for size in expected.sizes[:_SHOWN])
        return self._act("size", "a size of", sizes, str(Size(latents=call.latents, **call.size)))

    def _remapped(self, profile: Profile, old: Sequence[float], new: Sequence[float]) -> Profile:
        """Move a mask to the new noise levels; other gates fit any. Fitted weights stay with the steps they are for."""
        if has_fitted(profile) and len(old) == len(new):
            was, now = _levels(old, new)
            self._say(
                f"the weights were fitted for {was}, but this sampler takes {now}; expect a larger error, or "
                "recalibrate with this sampler"
            )
        if not isinstance(profile.gate, Fixed) or has_fitted(profile):
            return profile
        groups = {name: remap(letters, old, new) for name, letters in profile.gate.groups.items()}
        gate = Fixed(mask=remap(profile.gate.mask, old, new), groups=groups)
        return profile.model_copy(update={"gate": gate})

    def _same(self, key: str, what: str, expected: Any, present: Any) -> bool:
        """Act on a difference; a policy that does not say is made for anything."""
        return expected is None or expected == present or self._act(key, what, expected, present)

    def _act(self, key: str, what: str, expected: Any, present: Any) -> bool:
        """Carry out the action for a mismatch; return whether the policy stays in use."""
        action: Action = getattr(self.policy.document.mismatch, key)
        message = f"the policy was made for {what} {_short(expected)}, but this is {_short(present)}"
        match action:
            case "error" | "remap":
                raise PolicyError(
                    f"{message} (mismatch.{key}); calibrate for it, or allow it in a new file: "
                    f"cachesmith edit POLICY --mismatch {key}=warn -o NEW"
                )
            case "disable":
                self._say(f"{message}; caching is off (mismatch.{key})")
                return False
            case "warn":
                self._say(f"{message} (mismatch.{key})")
                return True

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            warnings.warn(message, RuntimeWarning, stacklevel=4)


def check_denoisers(policy: Policy, named: Collection[str]) -> None:
    """Raise `PolicyError` where `policy` is for denoisers that a pipeline with those `named` has not."""
    told = {name for profile in policy.document.profiles.values() for name in profile.denoisers}
    missing = sorted(told - set(named))
    if missing:
        raise PolicyError(
            f"the policy was made for a pipeline with {', '.join((MAIN, *sorted(told)))}, and this one has no "
            f"{missing[0]}: load it with all of them"
        )


def check_guidance(policy: Policy, branches: int) -> bool:
    """Compare the guidance with the number of branches seen in one step; return False to disable the policy.

    One branch may be guided in a batch or not at all: those two are not told apart.
    """
    expected = policy.document.sampler
    if expected is None or (expected.guidance == "sequential") == (branches > 1):
        return True
    present = "sequential" if branches > 1 else "batched or none"
    return Match(policy)._act("guidance", "guidance", expected.guidance, present)


def _adapters(expected: ModelKey, transformer: nn.Module, present: dict[str, Any]) -> tuple[str, str]:
    """The LoRAs a policy was made with and those that are loaded; with their strengths, where the policy has them."""
    scales: dict[str, float] = present["adapter_scales"]
    if expected.adapter_scales is None:
        return ", ".join(expected.adapters) or "none", ", ".join(lora_names(transformer)) or "none"
    both = (expected.adapter_scales, scales)
    was, now = (", ".join(f"{n} at {s:g}" for n, s in sorted(each.items())) or "none" for each in both)
    return was, now


def _same_weights(expected: ModelKey, network: Network) -> bool:
    """Whether the weights are the policy's; all of them are read again only where they may have changed."""
    if expected.weights_sketch is not None:
        sketch = network.recall_weights("sketch", lambda: weights_sketch(network.root))
        if sketch is not None:
            return same_weights(expected.weights_sketch, sketch)
    if expected.weights_hash is None:
        return True
    present = network.recall_weights("hash", lambda: present_weights(network.root))
    return present is None or present == expected.weights_hash


def _hash(key: ModelKey) -> str:
    return "of its model" if key.weights_hash is None else f"{key.weights_hash[:12]}…"


def _levels(old: Sequence[float], new: Sequence[float]) -> tuple[str, str]:
    """Two lists of noise levels, told apart: by number and ends, or where they differ most."""
    was, now = (f"{len(each)} steps from {each[0]:.4g} to {each[-1]:.4g}" for each in (old, new))
    if was != now:
        return was, now
    step = max(range(len(old)), key=lambda i: abs(old[i] - new[i]))
    return f"{was} ({old[step]:.4g} at step {step + 1})", f"{now} ({new[step]:.4g} at step {step + 1})"


def _same_levels(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(
        isclose(x, y, rel_tol=1e-3, abs_tol=1e-6) for x, y in zip(a, b, strict=True)
    )


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return isclose(a, b, rel_tol=1e-6)
    return bool(a == b)


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 and text.isalnum() else text
