"""Identify a model and a sampler, so that a policy is never applied to another one unnoticed."""

import hashlib
import json
from typing import Any

import torch
from torch import nn

from cachesmith.policies import ModelKey, SamplerKey
from cachesmith.runtime.models.sampler import noise_levels
from cachesmith.runtime.models.units import block_lists

SAMPLES_PER_TENSOR = 64


def model_key(transformer: nn.Module, pipeline: Any = None) -> ModelKey:
    """Describe a loaded transformer; raise `PolicyError` when there is no adapter for it."""
    return ModelKey(
        pipeline="" if pipeline is None else type(pipeline).__name__,
        transformer=type(transformer).__name__,
        config_hash=config_hash(transformer),
        blocks=len(block_lists(transformer)),
        weights_hash=weights_hash(transformer),
        adapters=lora_names(transformer),
    )


def sampler_key(scheduler: Any, guidance: str = "none", scale: float | None = None) -> SamplerKey:
    """Describe a scheduler after `set_timesteps`, and the guidance it was used with: how it is computed, its scale."""
    sigmas = noise_levels(scheduler)
    return SamplerKey.model_validate(
        {
            "scheduler": type(scheduler).__name__,
            "steps": len(sigmas),
            "sigmas": sigmas,
            "guidance": guidance,
            "guidance_range": None if scale is None else (scale, scale),
        }
    )


def config_hash(transformer: Any) -> str:
    """Sha256 of the transformer's configuration; entries that start with an underscore do not count."""
    config = {k: v for k, v in dict(transformer.config).items() if not k.startswith("_")}
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


@torch.no_grad()
def weights_hash(transformer: nn.Module) -> str | None:
    """Sha256 over names, shapes and 64 evenly spaced values (as bfloat16) of every parameter: fast, dtype-tolerant.

    None while parameters are offloaded to where they cannot be read.
    """
    digest = hashlib.sha256()
    for name, value in sorted(transformer.named_parameters()):
        if value.is_meta:
            return None
        flat = value.detach().reshape(-1)
        picked = flat[:: max(1, flat.numel() // SAMPLES_PER_TENSOR)][:SAMPLES_PER_TENSOR].to(torch.bfloat16)
        # compiled blocks carry a prefix
        digest.update(f"{name.replace('_orig_mod.', '')}:{tuple(value.shape)}:".encode())
        digest.update(picked.cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def lora_names(transformer: nn.Module) -> tuple[str, ...]:
    """Names of the LoRA adapters that are loaded."""
    return tuple(sorted(getattr(transformer, "peft_config", None) or ()))
