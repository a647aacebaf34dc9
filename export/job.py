"""One export: what is exported, and the keys by which its results are known again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
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
from cachesmith.runtime.models.denoisers import denoisers, part_name
from cachesmith.runtime.models.fingerprint import model_key
from cachesmith.sampling.render import as_taken


@dataclass(frozen=True, eq=False)
class ExportedDenoiser:
    """One of the modules that are exported, and the part of the policy that it follows."""

    module: nn.Module
    policy: Policy
    model: ModelKey


@dataclass(frozen=True, eq=False)
class Job:
    """A checked order: the pipeline's denoisers, by name, are exported for `policy` as `config` says."""

    pipe: Any
    policy: Policy
    config: ExportConfig
    denoisers: dict[str, ExportedDenoiser]
    build: Build | None
    dtype: str

    def module(self, part: Part) -> nn.Module:
        """The denoiser that a part is of."""
        return self.denoisers[part.denoiser].module


def make_job(pipe: Any, policy: Policy, config: ExportConfig) -> Job:
    """Check that the pipeline can be exported; raise `EngineError` when it cannot."""
    found = {
        name: ExportedDenoiser(module, own, model_key(module, pipe))
        for name, module, own in _exported(pipe, policy)
    }
    for name, each in found.items():
        _check_weights(name, each.model)
    dtypes = {str(next(each.module.parameters()).dtype).removeprefix("torch.") for each in found.values()}
    if len(dtypes) > 1:
        raise EngineError(
            f"{' and '.join(found)} are loaded in {' and '.join(sorted(dtypes))}; load both in one dtype"
        )
    build = None if config.target == "onnxruntime" else plan_build(config.target, config.build)
    return Job(pipe, policy, config, found, build, dtypes.pop())


def _exported(pipe: Any, policy: Policy) -> Iterator[tuple[str, nn.Module, Policy]]:
    """The denoisers that the policy has something for: others are computed by torch."""
    named = denoisers(pipe)
    for name, module in named.items():
        place = part_name(name, named)
        own = denoiser_policy(policy, place)
        if own is not None:
            yield place, module, own


def _check_weights(name: str, model: ModelKey) -> None:
    if model.adapters:
        raise EngineError(
            f"LoRA {', '.join(model.adapters)} is loaded but not fused; pipe.fuse_lora(), then "
            "pipe.unload_lora_weights(), then export"
        )
    if model.weights_hash is None:
        raise EngineError(
            f"the weights of {name} are offloaded and cannot be read; export without offloading"
        )


def parts_of(pipe: Any, policy: Policy, config: ExportConfig) -> tuple[Part, ...]:
    """Return the parts that an export makes, without making them."""
    return tuple(
        replace(part, denoiser=name)
        for name, module, own in _exported(pipe, policy)
        for part in plan_parts(
            own,
            module,
            profiles=config.profiles,
            segments=config.segments,
            blockwise=config.blockwise,
            limit=config.max_engine_gib * 2**30,
        )
    )


def part_key(job: Job, part: Part) -> str:
    """Digest of everything the part's graph and shape ranges depend on; not of the policy's other content."""
    c, denoiser = job.config, job.denoisers[part.denoiser]
    about = [
        part.name,
        denoiser.model.transformer,
        denoiser.model.config_hash,
        job.dtype,
        c.opset,
        versions(),
    ]
    tokens = None if c.tokens is None else c.tokens.model_dump()
    shapes = [c.requests, steps_of(job.policy, c), c.pictures.model_dump(), tokens, c.prove]
    if halved(denoiser.policy, c):
        shapes.append("halved")
    return digest([about, shapes, weights_digest(part_unit(denoiser.module, part).members)])


def steps_of(policy: Policy, config: ExportConfig) -> int:
    """Number of sampler steps of the recorded runs: as told, else as calibrated, else 20."""
    sampler = policy.document.sampler
    return config.steps or (sampler.steps if sampler is not None else 20)


def halved(policy: Policy, config: ExportConfig) -> bool:
    """Whether some steps are computed for one half of a guided batch."""
    units = [policy.profile(name).units for name in config.profiles or policy.document.profiles]
    return any(each.follower in ("first", "second") for each in units)


def sample_requests(pipe: Any, policy: Policy, config: ExportConfig, report: Report) -> None:
    """Sample every request once. Raises `EngineError` where there is none."""
    steps, requests = steps_of(policy, config), config.requests
    if not requests:
        raise EngineError("no request to record: give pipeline arguments, such as {'class_labels': [0]}")
    for place, request in enumerate(requests):
        report("recording inputs", place, len(requests))
        # with noise of its own, so that the same export proves the same figures
        noise = torch.Generator().manual_seed(place)
        options = {"output_type": "pt", "num_inference_steps": steps, "generator": noise}
        pipe(**{**options, **as_taken(pipe, request)})


def record_parts(job: Job, parts: tuple[Part, ...], report: Report) -> dict[str, list[PartCall]]:
    """Sample every request once and return what each part was given, by its name."""
    if not parts:
        return {}
    recorded: dict[str, list[PartCall]] = {}
    watched: Callable[[], None] = partial(sample_requests, job.pipe, job.policy, job.config, report)
    for name, denoiser in job.denoisers.items():
        own = tuple(part for part in parts if part.denoiser == name)
        watched = partial(_record, recorded, denoiser.module, job.pipe.scheduler, own, watched)
    watched()
    return recorded


def _record(
    recorded: dict[str, list[PartCall]],
    module: nn.Module,
    scheduler: Any,
    parts: tuple[Part, ...],
    sample: Callable[[], None],
) -> None:
    """Sample with one more denoiser watched."""
    own = record(module, scheduler, parts, sample)
    if idle := next((name for name, calls in own.items() if not calls), None):
        raise EngineError(
            f"{idle} is never called by the requests; export requests that every denoiser takes part in"
        )
    check_alike(own, parts)
    recorded.update(own)


def manifest_of(job: Job, segments: tuple[SegmentEntry, ...]) -> Manifest:
    """Return the manifest of the exported segments."""
    models = {name: denoiser.model for name, denoiser in job.denoisers.items()}
    return Manifest.model_validate(
        {
            "target": job.config.target,
            "policy_id": job.policy.id,
            "policy_name": job.policy.document.name,
            "model": models.pop(MAIN),
            "models": models,
            "dtype": job.dtype,
            "opset": job.config.opset,
            "versions": versions(),
            "segments": segments,
            "build": job.build,
        }
    )
