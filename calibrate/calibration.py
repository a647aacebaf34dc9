"""Calibrate: sample uncached, make every profile from that, measure on held-out prompts, save."""

import math
import platform
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cachesmith import __version__
from cachesmith.calibrate.config import LEAST, CalibrationConfig, CalibrationResult
from cachesmith.calibrate.cost.ledger import Ledger
from cachesmith.calibrate.cost.plan import plan_of
from cachesmith.calibrate.fleet.groups import request_groups
from cachesmith.calibrate.fleet.hire import hired
from cachesmith.calibrate.fleet.recipe import Loader, frozen, model_keys, print_of
from cachesmith.calibrate.fleet.shards import Shards
from cachesmith.calibrate.memory.choice import choose
from cachesmith.calibrate.memory.placement import Placement
from cachesmith.calibrate.prepared import Prepared
from cachesmith.calibrate.probe import other_sizes, probe, rows_are_samples
from cachesmith.calibrate.report.gather import Outcomes
from cachesmith.calibrate.report.report import write_report
from cachesmith.calibrate.spaces import Found, search_rfc, search_stack
from cachesmith.calibrate.turns import check_one_course
from cachesmith.calibrate.warm_start import check_earlier, origin
from cachesmith.calibrate.work_folder import Memo, digest_of
from cachesmith.files import FolderInUseError, sole_writer
from cachesmith.policies import MAIN, Calibration, Document, Policy, PolicyError, Profile, save
from cachesmith.policies.base import Arrays
from cachesmith.progress import stage, tell
from cachesmith.runtime.discovery.first_run import find_blocks
from cachesmith.runtime.models.fingerprint import sampler_key
from cachesmith.sampling.encode import encoded_once
from cachesmith.sampling.evaluate import Evaluator
from cachesmith.sampling.loop import without_progress_bars
from cachesmith.sampling.lpips import load_lpips
from cachesmith.sampling.render import Renderer, device_of
from cachesmith.sampling.requests import (
    Prompt,
    Request,
    Split,
    differing_arguments,
    requests,
    requests_digest,
    split,
)
from cachesmith.sampling.scores import compare, summarise
from cachesmith.sampling.timing import elapsed

PRODUCTIVE = 0.6
"""Share of a limit of time that is spent in forwards and backwards; the rest goes into equations and replays."""

DECIBEL = 10 / math.log(10)
"""Of a natural logarithm of a squared error."""


def calibrate(
    pipe: Any, prompts: Sequence[Prompt], config: CalibrationConfig | None = None, load: Loader | None = None
) -> CalibrationResult:
    """Find the policy of `pipe` that stays closest to the uncached pictures at every asked speed.

    prompts: text prompts, or dicts of pipeline arguments. The pipeline runs as it is (device, dtype, scheduler).
    Interrupting loses nothing that took long: the same call with the same `config.work` resumes. The same seed gives
    the same policy; with more of `config.workers`, but for rounding. load: loads the same pipeline onto a device, such
    as `cuda:1`, in a worker; it is pickled. Raises `PolicyError` when no blocks of the transformer can be cached, when
    its sampler takes another number of steps than it is asked for, or when the earlier policy may have been fitted on
    what is held out.
    """
    config = config or CalibrationConfig()
    trainable = frozen(pipe)
    try:
        config.work.mkdir(parents=True, exist_ok=True)
        first = requests(prompts, 1, config.seed)
        with without_progress_bars(pipe), _held(config.work):
            find_blocks(pipe, lambda: Renderer(pipe, config.steps, 1, **config.common)(first))
            return _Calibration(pipe, prompts, within_time(pipe, prompts, config), load).run()
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def _held(work: Path) -> Iterator[None]:
    """Keep another calibration out of the work folder."""
    try:
        with sole_writer(work):
            yield
    except FolderInUseError:
        raise PolicyError(
            f"another calibration works in {work}; wait for it, or give another work folder (--work)"
        ) from None


class _Calibration:
    """The steps of one calibration, in order; holds what later steps need of earlier ones."""

    def __init__(
        self, pipe: Any, prompts: Sequence[Prompt], config: CalibrationConfig, load: Loader | None = None
    ):
        self.pipe, self.config, self.load = pipe, config, load
        self.perceptual = None if config.lpips is None else load_lpips(config.lpips)
        self.plan = plan_of(config)
        self.parts = divided(prompts, self.plan.samples, config.heldout, config.seed)
        self.fitting = (*self.parts.fitting, *self.parts.validation)
        if config.earlier is not None:
            check_earlier(config.earlier, prompts, self.parts)
        self.models = model_keys(pipe)
        self.key = digest_of(
            print_of(pipe, self.models), self.parts, config.common, config.steps, config.seed, __version__
        )
        self.where = one_at_a_time(pipe, self.fitting, config, choose(pipe, self.fitting, config, self.key))
        self.config = replace(config, batch=self.where.batch, gradient_checkpointing=self.where.recomputed)
        self.plan = plan_of(self.config)
        self.renderer = Renderer(pipe, config.steps, self.where.batch, **config.common)

    def run(self) -> CalibrationResult:
        """Do everything."""
        config, every = self.config, (*self.fitting, *self.parts.heldout)
        ledger = Ledger(config.steps, config.work / f"ledger-{self.key}.json", device_of(self.pipe))
        with self._shards() as shards, stage("run equivalents", self.plan.runs) as advance:
            ledger.workers = len(shards.workers)
            check_one_course(self.renderer, every)
            self._references(shards, ledger, advance)
            probed = shards.groups[0].requests
            shape = probe(self.renderer, probed)
            calls = [shape.call, *other_sizes(self.renderer, probed[0], every)]
            prepared = Prepared(self.renderer, shards, shape, self.plan, ledger, self.key)
            search = search_rfc if config.space == "rfc" else search_stack
            found = search(prepared, config, advance)
            if shards.repeated:
                with ledger.phase("lost with workers") as phase:
                    phase.forwards += shards.repeated
        ledger.workers = 1
        with ledger.phase("measuring") as phase, encoded_once(self.pipe):
            heldout = Evaluator(self.renderer, self.parts.heldout)
            phase.forwards += len(self.parts.heldout) * config.steps
            psnr: dict[str, Tensor] = {}
            profiles = {
                name: self._measured(name, each, heldout, psnr, shape.uncached)
                for name, each in found.items()
            }
            phase.forwards += len(self.parts.heldout) * sum(p.nfc or 0.0 for p in profiles.values())
        given = [request.arguments for request in every]
        sampler = sampler_key(self.pipe.scheduler, shape.guidance, calls, given)
        document = Document(
            name=config.name, profiles=profiles, model=self.models[MAIN], sampler=sampler,
            models={
                name: self.models[name] for called in shape.denoisers for name in called if name != MAIN
            },
            calibration=self._provenance(found),
        )  # fmt: skip
        policy = Policy(document, _merged([each.policy.arrays for each in found.values()]))
        if config.out is not None:
            config.out.parent.mkdir(parents=True, exist_ok=True)
            save(policy, config.out)
        report = None
        if config.report is not None:
            outcomes = Outcomes(
                psnr=psnr,
                losses={name: [-DECIBEL * loss for loss in each.losses] for name, each in found.items()},
                sources={name: each.source for name, each in found.items()},
                seconds=ledger.seconds,
            )
            report = write_report(config.report, policy, ledger, heldout, config, outcomes)
        return CalibrationResult(policy, ledger, report)

    def _shards(self) -> AbstractContextManager[Shards]:
        groups = request_groups(self.fitting, self.where.batch)
        folder = self.config.work / f"references-{self.key}"
        return hired(
            self.renderer, groups, folder, self.config.workers, self.load, self.where, self.config.ray
        )

    def _references(self, shards: Shards, ledger: Ledger, advance: Any) -> None:
        def sampled(samples: float) -> None:
            phase.forwards += samples * self.config.steps
            advance(samples)

        with ledger.phase("references") as phase:
            visited = shards.references(sampled)
        if visited != self.config.steps:
            raise PolicyError(
                f"{type(self.pipe.scheduler).__name__} took {visited} steps of {self.config.steps}; "
                "calibrate with a sampler that calls the model once a step"
            )

    def _measured(
        self, name: str, found: Found, heldout: Evaluator, psnr: dict[str, Tensor], uncached: float
    ) -> Profile:
        """The profile with its held-out quality, and its speed beside runs of `uncached` full computations; the dB of
        every sample go into `psnr`."""
        outcome = heldout(found.policy)
        scores = compare(heldout.reference, outcome.pictures, self.perceptual)
        psnr[name] = scores.psnr
        quality = summarise(scores, self.config.seed, parts=differing_arguments(heldout.requests))
        update = {"nfc": outcome.nfc, "speedup": uncached / outcome.nfc, "quality": quality}
        return found.policy.profile().model_copy(update=update)

    def _provenance(self, found: dict[str, Found]) -> Calibration:
        heldout = self.parts.heldout
        return Calibration(
            fitting_prompts=requests_digest(self.fitting),
            heldout_prompts=requests_digest(heldout),
            fitting_size=len(self.fitting),
            heldout_size=len(heldout),
            fitting_seeds=tuple(r.seed for r in self.fitting),
            heldout_seeds=tuple(r.seed for r in heldout),
            dtype=str(self.pipe.transformer.dtype).removeprefix("torch."),
            versions=_versions(),
            study=f"cachesmith-{self.key}",
            fitted=(
                *(f"profiles/{name}: {each.source}" for name, each in found.items()),
                f"objective: {self.config.objective}",
                *origin(self.config.earlier),
                *self.plan.lines(),
            ),
        )


def within_time(pipe: Any, prompts: Sequence[Prompt], config: CalibrationConfig) -> CalibrationConfig:
    """Turn a limit of seconds into a budget: times one uncached batch, once for a work folder."""
    if config.seconds is None:
        return config
    memo = Memo(config.work / "budgets.jsonl")
    name = digest_of(
        print_of(pipe), config.seconds, config.steps, config.batch, config.workers, config.common
    )
    known = memo.get(name)
    if known is None:
        batch = config.batch or choose(pipe, requests(prompts, len(prompts), 0), config, name).batch
        renderer = Renderer(pipe, config.steps, batch, **config.common)
        some = requests(prompts, batch, 0)
        renderer(some[:1])  # warm-up
        alone = PRODUCTIVE * config.seconds * len(some) / elapsed(partial(renderer, some), device_of(pipe))
        known = [alone * config.workers]
        memo.put(name, known)
    return replace(config, budget=max(LEAST["budget"], known[0] - config.heldout * 1.5), seconds=None)


def one_at_a_time(
    pipe: Any, fitting: Sequence[Request], config: CalibrationConfig, where: Placement
) -> Placement:
    """`where`, with samples called one by one where a row of what blocks are given is not one sample's."""
    together = max((group.requests for group in request_groups(fitting, where.batch)), key=len)
    if len(together) == 1 or rows_are_samples(Renderer(pipe, config.steps, 2, **config.common), together[:2]):
        return where
    tell(f"{type(pipe).__name__} mixes the samples of a batch inside its blocks: they are called one by one")
    return replace(where, batch=1, gradient_batch=1)


def divided(prompts: Sequence[Prompt], fitting: int, heldout: int, seed: int) -> Split:
    """The split; its part for validation is fitted on too: folds of the fitting samples judge one another."""
    validation = fitting // 4
    return split(prompts, fitting - validation, validation, heldout, seed)


def _merged(parts: Sequence[Arrays]) -> Arrays:
    """All arrays of several profiles; equal names hold equal arrays."""
    return {name: array for part in parts for name, array in part.items()}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("cachesmith", "diffusers", "optuna"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
