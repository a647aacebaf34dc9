"""`cachesmith run`: sample pictures, with or without a policy."""

import warnings
from functools import partial
from inspect import signature
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachesmith.commands import options
from cachesmith.commands.output import note, print_json, say
from cachesmith.commands.pipeline import (
    arguments,
    calibrated_arguments,
    check_engines,
    check_steps,
    engines,
    largest_batch,
    negative_of,
    open_pipeline,
    require_requests,
    sampling,
)
from cachesmith.commands.shared.memory import peak_memory, reset_peak
from cachesmith.commands.shared.saving import FPS, check_files, check_kind, file_names, kind, save_samples
from cachesmith.commands.shared.what_to_sample import requests_for, what_to_sample
from cachesmith.policies import CachesmithError, Policy, load, preset
from cachesmith.progress import stage

if TYPE_CHECKING:
    from cachesmith.runtime import Stats
    from cachesmith.sampling.pictures import Pictures, Samples
    from cachesmith.sampling.render import Renderer
    from cachesmith.sampling.requests import Request


def run(
    model: options.Model,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="IMAGE.png",
            help="Where the pictures go; a video's name ends in .mp4, a sound's in .wav.",
        ),
    ],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="A text prompt; may be repeated.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--class-label", metavar="N", help="A class, by number or name; may be repeated."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help='Prompts of a file, one a line, or JSON objects of pipeline arguments such as {"image": "bag.png"}.',
        ),
    ] = None,
    policy: options.MaybePolicyFile = None,
    profile: options.ProfileName = None,
    num_images: Annotated[
        int, typer.Option("--num-images", min=1, help="Pictures of every prompt or class.")
    ] = 1,
    steps: options.StepsOption = None,
    *,
    calls: options.Sampling,
    seed: options.SeedOption = 0,
    batch: options.BatchSize = 32,
    memory_budget: Annotated[
        int | None,
        typer.Option(
            "--memory-budget",
            parser=options.size,
            metavar="BYTES",
            help="Largest cache, e.g. 512MiB.",
            rich_help_panel=options.SAMPLING,
        ),
    ] = None,
    loading: options.Loading,
    engine: options.EngineOptions,
    drop_torch_weights: Annotated[
        bool,
        typer.Option(
            "--drop-torch-weights",
            help="Free the weights of what the bundle computes.",
            rich_help_panel=options.ENGINES,
        ),
    ] = False,
    separate: Annotated[
        bool,
        typer.Option(
            "--separate",
            help="Several pictures: IMAGE-0.png, ... not a grid.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    fps: Annotated[
        int,
        typer.Option(
            "--fps", min=1, help="Frames a second of a video's file.", rich_help_panel=options.OUTPUT
        ),
    ] = FPS,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Sample pictures, with a policy or without, and say what was computed.

    The same seed gives the same picture, whatever else is sampled with it.

    Cost: loading the model, then about NFC / steps of what the same pictures cost without a policy.

    Example: cachesmith run examples/fashion_dit/model --policy examples/fashion_dit/fashion.policy.safetensors
    --class-label 8 --num-images 4 --out bags.png
    """
    wanted = what_to_sample(prompt or [], label or [], prompts)
    count = num_images * len(wanted)
    check_files(out, count, separate, force)
    check_engines(engine, drop_torch_weights)
    chosen = _policy(policy, profile, loading.token)
    check_steps(chosen, [profile], steps)
    given = arguments(calls).union(*wanted)
    pipe = open_pipeline(model, loading, chosen, given, partial(check_kind, out))
    requests = requests_for(pipe, wanted, count, seed, negative_of(calls))
    visited, common = sampling(pipe, chosen, steps, calls)
    require_requests(pipe, requests, common, visited)
    _tell_calibrated(calibrated_arguments(pipe, chosen, arguments(calls, requests)), pipe)

    from cachesmith.sampling.pictures import sampling_rate
    from cachesmith.sampling.render import Renderer

    opened = engines(engine, pipe)
    renderer = Renderer(pipe, visited, largest_batch(opened, batch, chosen), **common)
    settings: dict[str, Any] = {"memory_budget": memory_budget}
    if opened is not None:
        chosen = chosen or preset("uncached")
        settings |= {"bundle": opened, "drop_torch_weights": drop_torch_weights}
    pictures, stats, seconds, taken = _sample(renderer, requests, chosen, profile, settings)
    _warn_unless_finite(pictures.image_samples)
    files = file_names(out, count, separate)
    save_samples(pictures.image_samples, files, fps, sampling_rate(pipe))
    if pictures.audio_samples is not None:
        note(f"{type(pipe).__name__} makes sound with its videos, which is not saved")
    facts = _facts(renderer, taken, stats, seconds, len(requests), files)
    print_json(facts) if json else _print(facts, kind(out))


def _tell_calibrated(taken: dict[str, Any], pipe: Any) -> None:
    """Say what the policy decides that the pipeline would do otherwise."""
    usual = {name: p.default for name, p in signature(pipe.__call__).parameters.items()}
    other = {name: value for name, value in taken.items() if value != usual[name]}
    if other:
        told = ", ".join(f"{name} {value:g}" for name, value in other.items())
        note(f"{told}: as the policy was calibrated")


def _policy(path: Path | None, profile: str | None, token: str | None) -> Policy | None:
    if path is None:
        if profile is not None:
            raise CachesmithError(f"--profile {profile} names a profile of a policy; give --policy as well")
        return None
    policy = load(path, token=token)
    policy.profile(profile)
    return policy


def _sample(
    renderer: "Renderer",
    requests: "tuple[Request, ...]",
    policy: Policy | None,
    profile: str | None,
    settings: dict[str, Any],
) -> "tuple[Pictures, Stats | None, float, float]":
    """Return what was drawn, what was computed, the seconds, and the steps that a run visits, on average."""
    from contextlib import nullcontext

    from cachesmith.commands.shared.steps_told import steps_told
    from cachesmith.runtime import apply
    from cachesmith.sampling.timing import elapsed
    from cachesmith.sampling.waypoints import visited_steps

    pictures: list[Pictures] = []
    applied = nullcontext() if policy is None else apply(renderer.pipe, policy, profile, **settings)
    reset_peak(renderer.pipe.device)
    with (
        stage("sampling", len(requests)) as advance,
        applied as session,
        steps_told(renderer, requests, advance),
        visited_steps(renderer.pipe.scheduler) as visited,
    ):
        seconds = elapsed(lambda: pictures.append(renderer(requests)), renderer.pipe.device)
    taken = fmean(visited or [renderer.steps])
    return pictures[0], None if session is None else session.stats, seconds, taken


def _warn_unless_finite(samples: "Samples") -> None:
    wrong = sum(not sample.isfinite().all() for sample in samples)
    if wrong:
        warnings.warn(
            f"{wrong} of {len(samples)} samples hold numbers that are not finite, and were not saved as "
            "the model draws them; try --dtype float32 or bfloat16, or a lower guidance scale",
            RuntimeWarning,
            stacklevel=2,
        )


def _facts(
    renderer: "Renderer",
    steps: float,
    stats: "Stats | None",
    seconds: float,
    pictures: int,
    files: list[Path],
) -> dict[str, Any]:
    return {
        "pictures": pictures,
        "steps": int(steps) if steps.is_integer() else steps,
        "nfc": steps if stats is None else stats.nfc,
        "seconds": seconds,
        "seconds_per_picture": seconds / pictures,
        "batch": renderer.batch,
        "arguments": renderer.common,
        "device": str(renderer.pipe.device),
        "peak_memory_bytes": peak_memory(renderer.pipe.device),
        "cache_bytes": 0 if stats is None else stats.cache_bytes,
        "fallbacks": {} if stats is None else dict(stats.fallbacks),
        "files": [str(path) for path in files],
    }


def _print(facts: dict[str, Any], sample: str) -> None:
    files = facts["files"] if len(facts["files"]) < 4 else [facts["files"][0], "...", facts["files"][-1]]
    memory = facts["peak_memory_bytes"]
    say(
        f"{facts['pictures']} {sample}(s) in {facts['seconds']:.2f} s, {facts['seconds_per_picture']:.2f} s each, "
        f"computed {facts['nfc']:.2f} of {facts['steps']:g} steps, cache {facts['cache_bytes'] / 2**20:.2f} MiB"
        + ("" if memory is None else f", peak memory {memory / 2**30:.2f} GiB")
        + f" -> {', '.join(files)}"
    )
    for reason, times in facts["fallbacks"].items():
        say(f"fell back, {times} time(s): {reason}")
