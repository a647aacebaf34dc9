"""One export: what is exported, and the keys by which its results are known again."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cachesmith.export.build_engine import plan_build
from cachesmith.export.config import ExportConfig, Report
from cachesmith.export.digest import digest, versions, weights_digest
from cachesmith.export.parts import Part, part_unit, plan_parts
from cachesmith.export.record import PartCall, check_alike, record
from cachesmith.policies import MAIN, EngineError, ModelKey, Policy, denoiser_policy
from cachesmith.policies.bundle.manifest import Build, Manifest, SegmentEntry
from cachesmith.runtime.models.denoisers import denoisers
from cachesmith.runtime.models.fingerprint import model_key


@dataclass(frozen=True, eq=False)
class Job:
    """A checked order: the pipeline's transformer is exported for `policy` as `config` says."""

    pipe: Any
    policy: Policy
    config: ExportConfig
    model: ModelKey
    build: Build | None
    dtype: str

    @property
    def transformer(self) -> nn.Module:
        """The module that is exported."""
        found: nn.Module = self.pipe.transformer
        return found


def make_job(pipe: Any, policy: Policy, config: ExportConfig) -> Job:
    """Check that the pipeline can be exported; raise `EngineError` when it cannot."""
    model = model_key(pipe.transformer, pipe)
    if model.adapters:
        raise EngineError(
            f"LoRA {', '.join(model.adapters)} is loaded but not fused; pipe.fuse_lora(), then "
            "pipe.unload_lora_weights(), then export"
        )
    if model.weights_hash is None:
        raise EngineError(
            "the transformer's weights are offloaded and cannot be read; export without offloading"
        )
    build = None if config.target == "onnxruntime" else plan_build(config.target, config.build)
    dtype = str(next(pipe.transformer.parameters()).dtype).removeprefix("torch.")
    return Job(pipe, policy, config, model, build, dtype)


def refuse_several_denoisers(policy: Policy, named: Iterable[str]) -> None:
    """Raise `EngineError` where `policy` is for several of a pipeline's denoisers: a bundle computes one of them."""
    cached = [name for name in named if denoiser_policy(policy, name) is not None]
    if len(cached) > 1:
        raise EngineError(
            f"policy {policy.document.name!r} is for {' and '.join(cached)}, and a bundle holds engines of {MAIN} "
            "only; run it in torch, without a bundle"
        )


def parts_of(pipe: Any, policy: Policy, config: ExportConfig) -> tuple[Part, ...]:
    """Return the parts that an export makes, without making them."""
    refuse_several_denoisers(policy, denoisers(pipe))
    return plan_parts(
        policy,
        pipe.transformer,
        profiles=config.profiles,
        segments=config.segments,
        blockwise=config.blockwise,
        limit=config.max_engine_gib * 2**30,
    )


def part_key(job: Job, part: Part) -> str:
    """Digest of everything the part's graph and shape ranges depend on; not of the policy's other content."""
    c = job.config
    about = [part.name, job.model.transformer, job.model.config_hash, job.dtype, c.opset, versions()]
    tokens = None if c.tokens is None else c.tokens.model_dump()
    shapes = [c.requests, steps_of(job.policy, c), c.pictures.model_dump(), tokens, c.prove]
    if halved(job.policy, c):
        shapes.append("halved")
    return digest([about, shapes, weights_digest(part_unit(job.transformer, part).members)])


def steps_of(policy: Policy, config: ExportConfig) -> int:
    """Number of sampler steps of the recorded runs: as told, else as calibrated, else 20."""
    sampler = policy.document.sampler
    return config.steps or (sampler.steps if sampler is not None else 20)


def halved(policy: Policy, config: ExportConfig) -> bool:
    """Whether some steps are computed for one half of a guided batch."""
    units = [policy.profile(name).units for name in config.profiles or policy.document.profiles]
    return any(each.follower in ("first", "second") for each in units)


def record_parts(job: Job, parts: tuple[Part, ...], report: Report) -> dict[str, list[PartCall]]:
    """Sample every request once and return what each part was given, by its name."""
    if not parts:
        return {}
    steps, requests = steps_of(job.policy, job.config), job.config.requests
    if not requests:
        raise EngineError("no request to record: give pipeline arguments, such as {'class_labels': [0]}")

    def sample() -> None:
        for place, request in enumerate(requests):
            report("recording inputs", place, len(requests))
            # with noise of its own, so that the same export proves the same figures
            noise = torch.Generator().manual_seed(place)
            job.pipe(**{"output_type": "pt", "num_inference_steps": steps, "generator": noise, **request})

    recorded = record(job.transformer, job.pipe.scheduler, parts, sample)
    check_alike(recorded, parts)
    return recorded


def manifest_of(job: Job, segments: tuple[SegmentEntry, ...]) -> Manifest:
    """Return the manifest of the exported segments."""
    return Manifest.model_validate(
        {
            "target": job.config.target,
            "policy_id": job.policy.id,
            "policy_name": job.policy.document.name,
            "model": job.model,
            "dtype": job.dtype,
            "opset": job.config.opset,
            "versions": versions(),
            "segments": segments,
            "build": job.build,
        }
    )
