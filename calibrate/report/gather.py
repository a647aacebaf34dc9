"""Fill `ReportData` from a finished calibration: the only part of the page that knows how one works."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cachesmith.calibrate.config import CalibrationConfig
from cachesmith.calibrate.report.baselines import REPEATS, SAMPLES, baseline_ways, measure_ways, profile_ways
from cachesmith.calibrate.report.data import Appendix, Measurement, ProfileReport, ReportData, ReportSample
from cachesmith.calibrate.report.media import encode_media, picture, visible_difference
from cachesmith.calibrate.report.runs import Trajectory, distinct, state_errors, trajectories
from cachesmith.calibrate.studies import dashboard
from cachesmith.policies import Policy, Profile, fixed_mask
from cachesmith.progress import stage
from cachesmith.runtime import apply, distill
from cachesmith.sampling.evaluate import Evaluator
from cachesmith.sampling.metrics import METRICS
from cachesmith.sampling.pictures import sampling_rate
from cachesmith.sampling.requests import Request
from cachesmith.sampling.timing import machine


@dataclass(frozen=True)
class Outcomes:
    """What a calibration remembers for its report.

    psnr: dB of every held-out sample, by profile. losses: dB after every iteration of the fitting, by profile.
    sources: how each profile was found. seconds: wall time of the calibration so far.
    """

    psnr: Mapping[str, Tensor]
    losses: Mapping[str, Sequence[float]]
    sources: Mapping[str, str]
    seconds: float


def gather(
    policy: Policy,
    heldout: Evaluator,
    config: CalibrationConfig,
    outcomes: Outcomes,
    appendix: Mapping[str, Path],
) -> ReportData:
    """Measure the baselines, sample what is shown, and put everything together. appendix: title -> picture file."""
    names = distinct(policy)
    entrants = profile_ways(heldout.renderer, policy, names)
    if config.baselines:
        entrants += baseline_ways(heldout.renderer, policy, names)
    batch = min(heldout.renderer.batch, SAMPLES, len(heldout.requests))
    with stage("front", len(entrants) * (1 + REPEATS) + REPEATS) as advance:
        measurements, uncached, notes = measure_ways(entrants, heldout, batch, advance)
    seconds = {m.name: m.seconds for m in measurements if m.family == "profile"}
    with stage("held-out samples", len(names)) as advance:
        profiles = []
        for name in names:
            profiles.append(_profile(policy, name, heldout, outcomes, seconds[name]))
            advance()
    return ReportData(
        name=policy.document.name,
        policy_id=policy.id,
        steps=config.steps,
        facts=_facts(policy, heldout, config),
        calibration_seconds=outcomes.seconds,
        accelerators=held_gpus(heldout.renderer.pipe.device, config.workers),
        command=command(config),
        dashboard=dashboard(config.storage, config.work),
        uncached_seconds=uncached,
        measured_on=_measured_on(len(heldout.requests), batch, measurements),
        measurements=tuple(measurements),
        profiles=tuple(profiles),
        notes=tuple(notes),
        appendix=tuple(Appendix(title, _read(path)) for title, path in appendix.items()),
    )


def held_gpus(device: torch.device, workers: int) -> int:
    """How many GPUs a calibration holds: each worker has one of its own."""
    return workers if device.type == "cuda" else 0


PLACES = ("work", "report", "earlier")
"""Settings that say where files are on one machine."""


def command(config: CalibrationConfig) -> str:
    """Return the command that was run or, where it was called in code, the call."""
    program, *arguments = sys.argv
    named = Path(program)
    if "cachesmith" in (named.name, named.parent.name if named.name == "__main__.py" else ""):
        return shlex.join(["cachesmith", *_without_secrets(arguments)])
    given = [
        f"{f.name}={getattr(config, f.name)!r}"
        for f in fields(config)
        if f.name not in PLACES and getattr(config, f.name) is not None
    ]
    return f"calibrate(pipe, prompts, CalibrationConfig({', '.join(given)}))"


def _without_secrets(arguments: Sequence[str]) -> list[str]:
    """Leave the value of --token out: reports are handed on."""
    joined = ["--token=..." if argument.startswith("--token=") else argument for argument in arguments]
    return [
        "..." if before == "--token" else argument
        for before, argument in zip(["", *joined], joined, strict=False)
    ]


def _profile(
    policy: Policy, name: str, heldout: Evaluator, outcomes: Outcomes, seconds: float
) -> ProfileReport:
    profile = policy.profile(name)
    samples = outcomes.psnr[name]
    order = samples.argsort().tolist()
    shown = {"worst": order[0], "median": order[(len(order) - 1) // 2], "best": order[-1]}
    chosen = list(dict.fromkeys(shown.values()))
    requests = [heldout.requests[i] for i in chosen]
    uncached = trajectories(heldout.renderer, requests)
    with apply(heldout.renderer.pipe, policy, name) as session:
        cached = trajectories(heldout.renderer, requests)
    quality, rate = profile.quality, sampling_rate(heldout.renderer.pipe)
    assert quality is not None, "a calibration measures every profile"
    return ProfileReport(
        name=name,
        nfc=profile.nfc or 0.0,
        seconds=seconds,
        mask=_mask(profile, session.stats.trace, len(uncached[0].states)),
        dynamic=fixed_mask(profile) is None,
        quality=quality,
        psnr=tuple(samples.tolist()),
        samples=tuple(
            _sample(rank, heldout.requests[i], float(samples[i]), uncached[place], cached[place], rate)
            for rank, i in shown.items() for place in [chosen.index(i)]
        ),
        losses=tuple(outcomes.losses.get(name, ())),
        source=outcomes.sources.get(name, ""),
    )  # fmt: skip


def _sample(
    rank: Any, request: Request, psnr: float, uncached: Trajectory, cached: Trajectory, rate: int
) -> ReportSample:
    apart, gain = visible_difference(uncached.drawn, cached.drawn)
    return ReportSample(
        rank, _prompt(request), request.seed, psnr, encode_media(uncached.drawn, rate),
        encode_media(cached.drawn, rate), encode_media(apart, rate), gain, state_errors(uncached, cached),
    )  # fmt: skip


def _prompt(request: Request) -> str:
    text = request.arguments.get("prompt")
    if isinstance(text, str):
        return text
    return ", ".join(f"{name}: {str(value)[:80]}" for name, value in request.arguments.items())


def _mask(profile: Profile, trace: Any, steps: int) -> str:
    return fixed_mask(profile) or distill(trace, steps).mask


def _facts(policy: Policy, heldout: Evaluator, config: CalibrationConfig) -> dict[str, str]:
    """What was calibrated, and on what, in words."""
    document, pipe = policy.document, heldout.renderer.pipe
    record = document.calibration
    facts = {"model": type(pipe).__name__, "hardware": _hardware(pipe)}
    if document.model is not None:
        facts["model"] += f", {document.model.transformer} of {document.model.blocks} blocks"
    if document.sampler is not None:
        facts["sampler"] = f"{document.sampler.scheduler}, {document.sampler.steps} steps"
    facts |= {"size": _sizes(heldout), "guidance": _guidance(policy), "seed": str(config.seed)}
    facts["schedules compared by"] = METRICS[config.objective].heading
    if record is not None:
        facts["samples"] = f"{record.fitting_size} to fit, {config.heldout} held out and measured last"
        facts["held-out prompts"] = f"sha256 {record.heldout_prompts[:16]}…"
        facts["versions"] = ", ".join(f"{name} {version}" for name, version in record.versions.items())
        facts["precision"] = record.dtype
    return facts


def _sizes(heldout: Evaluator) -> str:
    """What is drawn, every size once."""
    reference = heldout.reference
    sizes = [reference[[place]].size for place in range(len(reference))]
    return " or ".join(dict.fromkeys(_in_words(size) for size in sizes))


def _in_words(size: Mapping[str, int]) -> str:
    if not size:
        return "sound"
    frames = f"{size['num_frames']} frames of " if "num_frames" in size else ""
    return f"{frames}{size['height']} × {size['width']} pixels"


def _guidance(policy: Policy) -> str:
    sampler = policy.document.sampler
    if sampler is None or sampler.guidance == "none":
        return "none"
    return ", ".join([sampler.guidance, *sampler.scales_in_words])


def _hardware(pipe: Any) -> str:
    found = machine(pipe.device)
    return f"{found['device']}, {found['cores']} cores, {found['threads']} thread(s)"


def _measured_on(heldout: int, batch: int, measurements: Sequence[Measurement]) -> str:
    samples = f"all {heldout}" if heldout <= SAMPLES else f"the first {SAMPLES} of {heldout}"
    said = (
        f"Every one of the {len(measurements)} on the same held-out samples, {samples}; seconds are medians of "
        f"{REPEATS} runs of {batch} sample(s) at once, taken in turns."
    )
    if all(m.family == "profile" for m in measurements):
        return said
    return (
        f"{said} Even steps, with a line, have the first and last computed steps of a profile; DBCache is cache-dit's "
        "method as this runtime has it."
    )


def _read(path: Path) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        return picture(image.convert("RGB"))
