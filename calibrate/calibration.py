"""Calibrate: record, fit, search, refine and tune, measure on held-out prompts, save."""

import platform
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from cachesmith import __version__
from cachesmith.calibrate.candidates import Makers, fastest, merge, warn_if_short
from cachesmith.calibrate.config import CalibrationConfig, CalibrationResult
from cachesmith.calibrate.cost import CostModel, measure_costs
from cachesmith.calibrate.elapsed import Elapsed
from cachesmith.calibrate.record.stage import Recording, record
from cachesmith.calibrate.report.gather import Outcomes
from cachesmith.calibrate.report.report import write_report
from cachesmith.calibrate.score_cache import Memo, digest_of
from cachesmith.calibrate.search.space import segments
from cachesmith.calibrate.search.study import Candidate, front, open_study, search, study_path
from cachesmith.calibrate.warm_start import check_earlier, origin
from cachesmith.policies import (
    Calibration,
    Document,
    Fixed,
    ModelKey,
    Modules,
    Policy,
    PolicyError,
    Profile,
    SamplerKey,
    Stack,
    TrialRecord,
)
from cachesmith.progress import stage
from cachesmith.runtime.models.fingerprint import model_key, sampler_key
from cachesmith.sampling.evaluate import Evaluator
from cachesmith.sampling.lpips import load_lpips
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Prompt, Split, digest, parts_of, split
from cachesmith.sampling.scores import compare, summarise


def calibrate(
    pipe: Any, prompts: Sequence[Prompt], config: CalibrationConfig | None = None
) -> CalibrationResult:
    """Find the policy of `pipe` that stays closest to the uncached pictures at every asked speed.

    prompts: text prompts, or dicts of pipeline arguments. The pipeline runs as it is (device, dtype, scheduler).
    Interrupting loses nothing: the same call with the same `config.work` resumes. The same seed gives the same policy,
    unless forecast times, measured anew in another work folder, rule out another candidate. Raises `PolicyError` when
    there is no adapter for the transformer, when its sampler takes another number of steps than it is asked for, or
    when the earlier policy may have been fitted on what is held out.
    """
    config = config or CalibrationConfig()
    shown = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**{**shown, "disable": True})
    try:
        return _Calibration(pipe, prompts, config).run()
    finally:
        pipe.set_progress_bar_config(**shown)


class _Calibration:
    """The steps of one calibration, in order; holds what later steps need of earlier ones."""

    def __init__(self, pipe: Any, prompts: Sequence[Prompt], config: CalibrationConfig):
        self.pipe, self.config = pipe, config
        self.perceptual = None if config.lpips is None else load_lpips(config.lpips)
        self.heldout_psnr: dict[str, Tensor] = {}
        self.parts: Split = split(prompts, config.fitting, config.validation, config.heldout, config.seed)
        if config.earlier is not None:
            check_earlier(config.earlier, prompts, self.parts)
        common = {} if config.guidance_scale is None else {"guidance_scale": config.guidance_scale}
        self.renderer = Renderer(pipe, config.steps, config.batch, **common)
        self.model: ModelKey = model_key(pipe.transformer, pipe)
        self.key = digest_of(
            self.model, type(pipe.scheduler).__name__, _settings(pipe.scheduler), self.parts, common,
            config.steps, config.seed, str(pipe.transformer.dtype), config.taps, __version__,
        )  # fmt: skip

    def run(self) -> CalibrationResult:
        """Do everything."""
        with Elapsed(self.config.work / f"seconds-{self.key}.txt") as self.elapsed:
            return self._run()

    def _run(self) -> CalibrationResult:
        fitting = self._evaluator("uncached, fitting", self.parts.fitting)
        self._check_steps()
        validation = self._evaluator("uncached, validation", self.parts.validation)
        recording = record(self.renderer, self.parts.fitting, self.config)
        parts = (self.parts.fitting, self.parts.validation, self.parts.heldout)
        given = [request.arguments for part in parts for request in part]
        sampler = sampler_key(self.pipe.scheduler, recording.guidance, recording.calls, given)
        costs = self._costs()
        study = open_study(self.config, self.key)
        with stage("search", self.config.trials) as advance:
            search(study, fitting, recording.space, self.config, advance)
        found = front(study, recording.space)
        makers = Makers(fitting, validation, recording, found, costs, self.config, self.key)
        chosen = {name: makers.choose(budget) for name, budget in self.config.budgets.items()}
        if self.config.min_psnr is not None:
            chosen["min-psnr"] = fastest(makers, self.config.min_psnr, self.config.steps)
        heldout = self._evaluator("uncached, held out", self.parts.heldout)
        policy = self._policy(chosen, found, heldout, study, recording, sampler)
        if self.config.min_psnr is not None:
            warn_if_short(policy.profile("min-psnr"), self.config.min_psnr)
        report = None
        if self.config.report is not None:
            outcomes = self._outcomes(chosen, makers)
            report = write_report(
                self.config.report, policy, study, recording, heldout, self.config, outcomes
            )
        return CalibrationResult(policy, study, report)

    def _outcomes(self, chosen: dict[str, Candidate], makers: Makers) -> Outcomes:
        tuned = {name: c.profile.gate for name, c in chosen.items() if c.source == "tuned weights"}
        return Outcomes(
            psnr=self.heldout_psnr,
            losses={n: makers.losses.get(g.mask, ()) for n, g in tuned.items() if isinstance(g, Fixed)},
            sources={name: candidate.source for name, candidate in chosen.items()},
            seconds=self.elapsed.seconds,
            study=study_path(self.config, self.key),
        )

    def _evaluator(self, title: str, requests: Sequence[Any]) -> Evaluator:
        with stage(title, len(requests)) as advance:
            return Evaluator(self.renderer, requests, advance)

    def _check_steps(self) -> None:
        visited = len(self.pipe.scheduler.timesteps)
        if visited != self.config.steps:
            raise PolicyError(
                f"{type(self.pipe.scheduler).__name__} visits {visited} timesteps in {self.config.steps} steps; "
                "calibrate with a sampler that calls the model once a step"
            )

    def _costs(self) -> CostModel:
        granularities = (Stack(), Modules(), segments(self.model.blocks, 2))
        memo = Memo(self.config.work / f"costs-{self.key}.jsonl")
        with stage("forecast times", 1) as advance:
            some = self.parts.fitting[: self.config.batch]
            costs = measure_costs(self.renderer, some, granularities, memo)
            advance()
        return costs

    def _policy(
        self,
        chosen: dict[str, Candidate],
        found: list[Candidate],
        heldout: Evaluator,
        study: Any,
        recording: Recording,
        sampler: SamplerKey,
    ) -> Policy:
        """Measure every profile on held-out requests, and put the policy together."""
        profiles: dict[str, Profile] = {}
        with stage("held-out profiles", len(chosen)) as advance:
            for name, candidate in chosen.items():
                outcome = heldout(candidate.policy)
                scores = compare(heldout.reference, outcome.pictures, self.perceptual)
                self.heldout_psnr[name] = scores.psnr
                quality = summarise(scores, self.config.seed, parts=parts_of(heldout.requests))
                profiles[name] = candidate.profile.model_copy(
                    update={
                        "nfc": outcome.nfc,
                        "speedup": self.config.steps / outcome.nfc,
                        "quality": quality,
                    }
                )
                advance()
        document = Document(
            name=self.config.name,
            profiles=profiles,
            model=self.model,
            sampler=sampler,
            calibration=self._provenance(chosen, found, study, recording),
        )
        return Policy(document, merge([candidate.policy.arrays for candidate in chosen.values()]))

    def _provenance(
        self, chosen: dict[str, Candidate], found: list[Candidate], study: Any, recording: Recording
    ) -> Calibration:
        parts = self.parts
        records = [
            TrialRecord(number=c.trial, psnr=c.psnr, nfc=c.nfc, source=c.source)
            for c in found
            if c.trial is not None
        ]
        return Calibration(
            fitting_prompts=digest([*parts.fitting, *parts.validation]),
            heldout_prompts=digest(parts.heldout),
            fitting_size=len(parts.fitting) + len(parts.validation),
            heldout_size=len(parts.heldout),
            fitting_seeds=tuple(r.seed for r in (*parts.fitting, *parts.validation)),
            heldout_seeds=tuple(r.seed for r in parts.heldout),
            dtype=str(self.pipe.transformer.dtype).removeprefix("torch."),
            versions=_versions(),
            study=study.study_name,
            fitted=(
                *(f"profiles/{name}: {c.source}" for name, c in chosen.items()),
                *origin(self.config.earlier),
            ),
            fits=recording.fits,
            front=tuple(records),
        )


def _settings(scheduler: Any) -> dict[str, Any]:
    """The scheduler's configuration, without the list that diffusers puts in another order in every process."""
    return {name: value for name, value in scheduler.config.items() if name != "_use_default_values"}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("cachesmith", "diffusers", "optuna"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
