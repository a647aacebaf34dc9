"""Identify a model and a sampler, so that a policy is never applied to another one unnoticed."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from cachesmith.policies import ModelKey, SamplerKey
from cachesmith.policies.document import Scalar
from cachesmith.runtime.models.sampler import noise_levels
from cachesmith.runtime.models.snapshot import Network, look
from cachesmith.runtime.models.units import block_lists
from cachesmith.runtime.models.weights import weights_hash, weights_sketch
from cachesmith.runtime.pipeline_call import PipelineCall

__all__ = ["config_hash", "facts", "lora_names", "model_key", "sampler_key", "weights_hash"]

UNSETTLED = ("_use_default_values", "num_inference_steps")
"""Entries of a scheduler's configuration that say nothing of how it samples."""


def model_key(transformer: nn.Module, pipeline: Any = None) -> ModelKey:
    """Describe a loaded transformer; raise `PolicyError` when there is no adapter for it."""
    return ModelKey(
        pipeline="" if pipeline is None else type(pipeline).__name__,
        transformer=type(transformer).__name__,
        config_hash=config_hash(transformer),
        blocks=len(block_lists(transformer)),
        weights_hash=weights_hash(transformer),
        weights_sketch=weights_sketch(transformer),
        adapters=lora_names(transformer),
        **facts(look(transformer)),
    )


def facts(network: Network) -> dict[str, Any]:
    """What of a loaded transformer may change from request to request, as fields of a `ModelKey`: cheap to read."""
    return {
        "dtype": dtype(network),
        "quantization": quantization(network),
        "attention": attention_backends(network),
        "adapter_scales": lora_scales(network.root),
    }


def dtype(network: Network) -> str:
    """What the transformer says it computes in, which hooks (layerwise casting) may change."""

    def read() -> str:
        return str(getattr(network.root, "dtype", "")).removeprefix("torch.")

    return read() if network.hooks else network.recall("dtype", read)


def sampler_key(
    scheduler: Any,
    guidance: str = "none",
    calls: Iterable[PipelineCall] = (),
    given: Iterable[Mapping[str, Any]] = (),
) -> SamplerKey:
    """Describe a scheduler after `set_timesteps`, and the runs it was used for.

    guidance: how it is computed. calls: runs that were watched. given: arguments of runs that were not.
    """
    sigmas, seen = noise_levels(scheduler), list(calls)
    scales = _ranges([call.scales for call in seen], given)
    sizes = {call.latents: call.size for call in seen if call.latents}
    return SamplerKey.model_validate(
        {
            "scheduler": type(scheduler).__name__,
            "steps": len(sigmas),
            "sigmas": sigmas,
            "guidance": guidance,
            "guidance_range": scales.get("guidance_scale"),
            "settings": scheduler_settings(scheduler),
            "scales": scales or None,
            "sizes": tuple({"latents": latents, **size} for latents, size in sizes.items()) or None,
        }
    )


def scheduler_settings(scheduler: Any) -> dict[str, Scalar]:
    """A scheduler's configuration, as far as it is numbers and words."""
    public = {
        n: v
        for n, v in getattr(scheduler, "config", {}).items()
        if not n.startswith("_") and n not in UNSETTLED
    }
    plain = {n: v for n, v in public.items() if v is None or isinstance(v, bool | int | float | str)}
    words = {n: str(v) for n, v in plain.items() if isinstance(v, float) and not math.isfinite(v)}
    return dict(sorted((plain | words).items()))


def _ranges(
    scales: list[dict[str, float]], given: Iterable[Mapping[str, Any]]
) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of every scale that all watched runs had."""
    names = set.intersection(*map(set, scales)) if scales else set()
    values = {name: [float(each[name]) for each in scales] for name in sorted(names)}
    for arguments in given:
        for name in names & set(arguments):
            if isinstance(arguments[name], int | float):
                values[name].append(float(arguments[name]))
    return {name: (min(each), max(each)) for name, each in values.items()}


def config_hash(transformer: Any) -> str:
    """Sha256 of the transformer's configuration; entries that start with an underscore do not count."""
    config = {k: v for k, v in dict(transformer.config).items() if not k.startswith("_")}
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def lora_names(transformer: nn.Module) -> tuple[str, ...]:
    """Names of the LoRA adapters that are loaded."""
    return tuple(sorted(getattr(transformer, "peft_config", None) or ()))


def lora_scales(transformer: nn.Module) -> dict[str, float]:
    """How strongly every loaded LoRA acts: the mean over its layers of what its product is multiplied with."""
    found: dict[str, list[float]] = {name: [] for name in lora_names(transformer)}
    for module in transformer.modules() if found else ():
        scaling = getattr(module, "scaling", None)
        if isinstance(scaling, dict) and hasattr(module, "base_layer"):
            off = bool(getattr(module, "disable_adapters", False))
            active = () if off else getattr(module, "active_adapters", ())
            for name in found.keys() & scaling.keys():
                found[name].append(float(scaling[name]) if name in active else 0.0)
    return {name: round(sum(each) / len(each), 6) if each else 0.0 for name, each in found.items()}


def quantization(network: Network) -> str:
    """The names of what its weights are quantised with, or `none`: the method, tensor classes, narrow dtypes."""
    config = getattr(getattr(network.root, "hf_quantizer", None), "quantization_config", None)
    method = getattr(config, "quant_method", None)
    found = set() if method is None else {str(getattr(method, "value", method))}
    found |= network.recall("quantization", lambda: _special(network.root))
    return " ".join(sorted(found)) or "none"


def _special(transformer: nn.Module) -> set[str]:
    """Tensor classes and narrow dtypes of parameters."""
    found = set()
    for value in transformer.parameters():
        if type(value) is not nn.Parameter and type(value) is not torch.Tensor:
            found.add(type(value).__name__)
        elif type(value.data) is not torch.Tensor:
            found.add(type(value.data).__name__)
        elif value.dtype.itemsize == 1:
            found.add(str(value.dtype).removeprefix("torch."))
    return found


def attention_backends(network: Network) -> str:
    """What computes attention: the backends set on the model's attention processors, or diffusers' active one."""
    processors = [m.processor for m in network.having("processor")]
    chosen = {
        str(getattr(own, "value", own)) for p in processors if (own := getattr(p, "_attention_backend", None))
    }
    return " ".join(sorted(chosen)) or _active_backend()


def _active_backend() -> str:
    try:
        from diffusers.models.attention_dispatch import _AttentionBackendRegistry
    except ImportError:
        return "native"
    active = _AttentionBackendRegistry._active_backend
    return str(getattr(active, "value", active))
