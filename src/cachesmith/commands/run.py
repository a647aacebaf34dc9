"""`cachesmith run`: sample pictures, with or without a policy."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachesmith.commands import options
from cachesmith.commands.output import check_picture, print_json, results, write_picture
from cachesmith.commands.pipeline import check_requests, class_label, engines, open_pipeline, sampling
from cachesmith.policies import CachesmithError, Policy, load, preset
from cachesmith.progress import stage

if TYPE_CHECKING:
    from cachesmith.runtime import Stats
    from cachesmith.sampling.render import Pictures, Renderer
    from cachesmith.sampling.requests import Request


def run(
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", metavar="IMAGE.png", help="Where the pictures go.")],
    policy: options.MaybePolicyFile = None,
    profile: options.ProfileName = None,
    bundle: options.Bundle = None,
    backend: options.Backend = None,
    outside: options.Outside = options.Elsewise.error,
    cuda_graphs: options.CudaGraphs = False,
    drop_torch_weights: Annotated[
        bool, typer.Option("--drop-torch-weights", help="Free the weights of what the bundle computes.")
    ] = False,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="A text prompt; may be repeated.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--class-label", metavar="N", help="A class, by number or name; may be repeated."),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Pictures of every prompt or class.")] = 1,
    separate: Annotated[
        bool, typer.Option("--separate", help="Several pictures: IMAGE-0.png, ... not a grid.")
    ] = False,
    steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of the first picture; the next ones count up.")
    ] = 0,
    batch: options.Batch = 32,
    memory_budget: Annotated[
        int | None,
        typer.Option(
            "--memory-budget", parser=options.size, metavar="BYTES", help="Largest cache, e.g. 512MiB."
        ),
    ] = None,
    dtype: options.Precision = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Sample pictures, with a policy or without, and say what was computed.

    The same seed gives the same picture, whatever else is sampled with it.
    """
    check_picture(out)
    chosen = _chosen(policy, profile)
    pipe = open_pipeline(model, device, dtype)
    made = _requests(pipe, prompt or [], label or [], count, seed)
    visited, common = sampling(chosen, steps, guidance_scale)
    check_requests(pipe, made, common)

    from cachesmith.sampling.render import Renderer

    renderer = Renderer(pipe, visited, batch, **common)
    settings: dict[str, Any] = {"memory_budget": memory_budget}
    if bundle is not None:
        chosen = chosen or preset("uncached")
        settings |= {
            "bundle": engines(bundle, backend, outside, cuda_graphs, pipe),
            "drop_torch_weights": drop_torch_weights,
        }
    pictures, stats, seconds = _sample(renderer, made, chosen, profile, settings)
    files = _save(pictures, out, separate)
    facts = _facts(renderer, stats, seconds, len(made), files)
    print_json(facts) if json else _print(facts)


def _chosen(path: Path | None, profile: str | None) -> Policy | None:
    if path is None:
        if profile is not None:
            raise CachesmithError(f"--profile {profile} names a profile of a policy; give --policy as well")
        return None
    policy = load(path)
    policy.profile(profile)
    return policy


def _requests(
    pipe: Any, prompts: list[str], labels: list[str], count: int, seed: int
) -> "tuple[Request, ...]":
    from cachesmith.sampling.requests import Prompt, requests

    if bool(prompts) == bool(labels):
        raise CachesmithError("say what to sample: give either --prompt or --class-label")
    wanted: list[Prompt] = [*prompts, *({"class_labels": class_label(pipe, text)} for text in labels)]
    return requests(wanted, count * len(wanted), seed)


def _sample(
    renderer: "Renderer",
    requests: "tuple[Request, ...]",
    policy: Policy | None,
    profile: str | None,
    settings: dict[str, Any],
) -> "tuple[Pictures, Stats | None, float]":
    from contextlib import nullcontext

    from cachesmith.runtime import apply
    from cachesmith.sampling.timing import elapsed

    made: list[Pictures] = []
    applied = nullcontext() if policy is None else apply(renderer.pipe, policy, profile, **settings)
    with stage("sampling", len(requests)) as advance, applied as session:
        call = partial(renderer, requests, advance)
        seconds = elapsed(lambda: made.append(call()), renderer.pipe.device)
    return made[0], None if session is None else session.stats, seconds


def _save(pictures: "Pictures", out: Path, separate: bool) -> list[str]:
    from cachesmith.sampling.sheet import grid, tile

    images = pictures.images
    if len(images) == 1:
        drawn = {out: tile(images[0])}
    elif separate:
        drawn = {out.with_stem(f"{out.stem}-{i}"): tile(image) for i, image in enumerate(images)}
    else:
        drawn = {out: grid(images)}
    for path, picture in drawn.items():
        write_picture(path, picture)
    return [str(path) for path in drawn]


def _facts(
    renderer: "Renderer", stats: "Stats | None", seconds: float, pictures: int, files: list[str]
) -> dict[str, Any]:
    steps = len(renderer.pipe.scheduler.timesteps)
    return {
        "pictures": pictures,
        "steps": steps,
        "nfc": float(steps) if stats is None else stats.nfc,
        "seconds": seconds,
        "cache_bytes": 0 if stats is None else stats.cache_bytes,
        "fallbacks": {} if stats is None else dict(stats.fallbacks),
        "files": files,
    }


def _print(facts: dict[str, Any]) -> None:
    console = results()
    shown = facts["files"] if len(facts["files"]) < 4 else [facts["files"][0], "...", facts["files"][-1]]
    console.print(
        f"{facts['pictures']} picture(s) in {facts['seconds']:.2f} s, computed {facts['nfc']:.2f} of "
        f"{facts['steps']} steps, cache {facts['cache_bytes'] / 2**20:.2f} MiB -> {', '.join(shown)}",
        markup=False,
        soft_wrap=True,
    )
    for reason, times in facts["fallbacks"].items():
        console.print(f"fell back, {times} time(s): {reason}", markup=False, soft_wrap=True)
