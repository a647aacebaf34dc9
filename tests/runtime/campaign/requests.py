"""What is asked for, of which pipeline, and the pictures of fresh pipelines that it is compared with."""

import copy
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import diffusers
import numpy as np
import torch
from tests.runtime.campaign.changes import ALL, changes_of
from tests.runtime.campaign.profiles import MASKED, PROFILES, STEPS, WHOLE, policy_for
from tests.tiny import Pipeline, sample_dit, sample_flux
from torch import nn

from cachesmith.policies import Policy, PolicyError
from cachesmith.runtime import apply
from cachesmith.runtime.hooks import clock

AFAR = clock._afar
"""Whether a timestep lies on an accelerator."""


def _flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def _unipc() -> Any:
    return diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")


SCHEDULERS: dict[str, list[Callable[[], Any]]] = {
    "dit": [
        diffusers.DDIMScheduler,
        diffusers.DPMSolverMultistepScheduler,
        diffusers.HeunDiscreteScheduler,
        diffusers.EulerDiscreteScheduler,
    ],
    "flux": [_flow, _unipc],
    "unknown": [_flow],
}


class UnknownTransformer(diffusers.FluxTransformer2DModel):  # type: ignore[misc]
    """A class without a row: its blocks are found by its first call."""


class Decoder(nn.Module):
    """The least that pipelines take for a VAE."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 3, 1)
        self.config = SimpleNamespace(scaling_factor=1.0, shift_factor=0.0, block_out_channels=(4,))

    @property
    def dtype(self) -> torch.dtype:
        """What its weight is held in."""
        return self.layer.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where its weight is."""
        return self.layer.weight.device

    def decode(self, latents: torch.Tensor, return_dict: bool = True) -> Any:
        """Three channels of every latent pixel."""
        sample = self.layer(latents)
        return SimpleNamespace(sample=sample) if return_dict else (sample,)


@cache
def _template(kind: str) -> Pipeline:
    """A pipeline of three blocks that is only ever copied."""
    torch.manual_seed(0)
    if kind == "dit":
        transformer = diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            sample_size=8,
            norm_num_groups=2,
        )
        pipe = diffusers.DiTPipeline(transformer.eval(), Decoder().eval(), _flow())
    else:
        flux = diffusers.FluxTransformer2DModel if kind == "flux" else UnknownTransformer
        transformer = flux(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
        )
        parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
        pipe = diffusers.FluxPipeline(_flow(), Decoder().eval(), transformer=transformer.eval(), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@dataclass(frozen=True)
class Asked:
    """One request, and the pipeline it is for, with what was done to it."""

    kind: str
    scheduler: int
    dtype: torch.dtype
    changes: tuple[str, ...] = ()
    steps: int = STEPS
    batch: int = 1
    guided: bool = False
    size: int = 16
    seed: int = 0

    def new_scheduler(self) -> Any:
        return SCHEDULERS[self.kind][self.scheduler]()

    def pipeline(self) -> Pipeline:
        """A fresh one, with all changes."""
        pipe = copy.deepcopy(_template(self.kind))
        pipe.scheduler = self.new_scheduler()
        pipe = pipe.to(self.dtype)
        for name in self.changes:
            ALL[name].make(pipe)
        return pipe

    @property
    def policy(self) -> Policy:
        return policy_for(1 if self.kind == "dit" else 2)

    @property
    def profiles(self) -> list[str]:
        """Profiles that this pipeline's transformer has units for, and its scheduler steps."""
        known = WHOLE if self.kind == "unknown" else PROFILES
        twice = SCHEDULERS[self.kind][self.scheduler] is diffusers.HeunDiscreteScheduler
        return [name for name in known if not (twice and name in MASKED)]

    @property
    def shared(self) -> bool:
        """Whether copies and workers can be made of the pipeline as it is."""
        return all(ALL[name].shared for name in self.changes)

    def other(self, draw: random.Random, profile: str) -> "Asked":
        """Another request for the same pipeline, of a number of steps that the profile takes."""
        return replace(
            self,
            steps=STEPS if profile in MASKED else draw.choice((STEPS, STEPS, STEPS + 1)),
            batch=draw.choice((1, 1, 1, 2)),
            guided=draw.random() < 0.3,
            size=16 if self.kind == "dit" else draw.choice((16, 16, 24)),
            seed=0,
        )

    def plainest(self) -> "Asked":
        """The shortest request for the same pipeline."""
        return replace(self, steps=3, batch=1, guided=False, size=16, seed=0)

    def sample(self, pipe: Pipeline, **arguments: Any) -> np.ndarray:
        """The request's pictures."""
        torch.manual_seed(self.seed)
        if self.kind == "dit":
            scale = 3.0 if self.guided else 1.0
            labels = tuple(range(1, 1 + self.batch))
            return np.asarray(sample_dit(pipe, self.seed, self.steps, labels, guidance_scale=scale))
        if self.guided:
            arguments["true_cfg_scale"] = 2.0
        return np.asarray(sample_flux(pipe, self.seed, self.steps, self.batch, self.size, **arguments))


@cache
def _uncached(asked: Asked) -> Pipeline:
    """A pipeline that is never under a policy."""
    return asked.pipeline()


@cache
def expected(asked: Asked, profile: str | None) -> np.ndarray | None:
    """The picture of a fresh pipeline: uncached, or under a profile of the policy; None where that refuses it."""
    if profile is None:
        return asked.sample(_uncached(asked.plainest()))
    pipe = asked.pipeline()
    with warnings.catch_warnings(), patch.object(clock, "_afar", AFAR):
        warnings.simplefilter("ignore")
        try:
            with apply(pipe, asked.policy, profile):
                return asked.sample(pipe)
        except PolicyError:
            return None


@cache
def expected_state(asked: Asked) -> list[Any]:
    """What stands on the instances of a fresh pipeline that was changed and used without us."""
    pipe = asked.pipeline()
    asked.sample(pipe)
    return state(pipe)


def state(pipe: Pipeline) -> list[Any]:
    """What stands on a pipeline's instances beside what their classes give them."""
    watched = {"forward", "step", "set_timesteps", "cache_context", "_old_forward", "_compiled_call_impl"}
    owners = [*pipe.transformer.modules(), pipe.scheduler]
    stands = [sorted(watched & {n for n in vars(owner) if not _own(owner, n)}) for owner in owners]
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in pipe.transformer.modules()]
    return [*stands, hooks]


def _own(owner: Any, name: str) -> bool:
    """Whether what stands on an instance is what its class would give it, as diffusers leaves it behind."""
    value = vars(owner)[name]
    return value is None or getattr(value, "__func__", None) is getattr(type(owner), name, value)


@cache
def possible(asked: Asked) -> bool:
    """Whether diffusers itself samples with these changes."""
    last = asked.changes[-1]
    if last not in changes_of(asked.kind) or not ALL[last].possible(asked.changes[:-1]):
        return False
    try:
        expected_state(asked)
    except Exception:
        return False
    return True
