"""`cachesmith bench`: profiles and published methods side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachesmith.commands import options
from cachesmith.commands.output import check_picture, print_json, results, write_picture, write_text
from cachesmith.commands.pipeline import (
    check_requests,
    engines,
    largest_batch,
    open_pipeline,
    sampling,
)
from cachesmith.policies import CachesmithError, Policy, load, parse_preset, preset
from cachesmith.progress import bars
from cachesmith.sampling.heldout import heldout

if TYPE_CHECKING:
    from torch import Tensor

    from cachesmith.runtime import Engines
    from cachesmith.sampling.bench import Contestant
    from cachesmith.sampling.render import Pictures, Renderer
    from cachesmith.sampling.requests import Request

COLUMNS = 8
"""Samples on a sheet."""


def bench(
    model: options.Model,
    prompts: options.Prompts,
    policy: options.MaybePolicyFile = None,
    profile: options.ProfileName = None,
    bundle: options.Bundle = None,
    backend: options.Backend = None,
    outside: options.Outside = options.Elsewise.error,
    cuda_graphs: options.CudaGraphs = False,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="PRESET",
            help="A published method with options, such as taylorseer:interval=5,order=2; may be repeated.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Pictures.")] = 16,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="Timed runs of each; the median counts.")
    ] = 3,
    seed: options.HeldoutSeed = None,
    steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    batch: options.Batch = 32,
    dtype: options.Precision = None,
    device: options.Device = None,
    lpips: options.Lpips = None,
    json: options.Json = False,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the table as Markdown.")
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", metavar="FILE", help="Write a sheet of pictures and differences."),
    ] = None,
) -> None:
    """Compare a policy's profiles with published methods: speed, quality and memory.

    All sample the same prompts and seeds in one process. Quality is the error against the uncached pictures; speed is
    the median wall time of whole pipeline calls, taken in turns; efficiency is the speed-up divided by steps / NFC.
    """
    from cachesmith.sampling import bench as library
    from cachesmith.sampling.lpips import load_lpips
    from cachesmith.sampling.render import Renderer

    if sheet is not None:
        check_picture(sheet)
    perceptual = None if lpips is None else load_lpips(lpips)
    loaded = None if policy is None else load(policy)
    entered = contestants(loaded, profile, against or [])
    made = heldout(loaded, prompts, samples, seed)
    pipe = open_pipeline(model, device, dtype)
    visited, common = sampling(loaded, steps, guidance_scale)
    check_requests(pipe, made, common)
    if bundle is not None:
        opened = engines(bundle, backend, outside, cuda_graphs, pipe)
        entered, batch = entered | with_engines(loaded, entered, opened), largest_batch(opened, batch)
    renderer = Renderer(pipe, visited, batch, **common)
    pictures: dict[str, Tensor] = {}

    def keep(name: str, sampled: "Pictures") -> None:
        pictures[name] = sampled.images[:COLUMNS]

    with bars() as progress:
        rows = library.bench(renderer, entered, made, repeats, progress=progress, keep=keep, lpips=perceptual)
    if markdown is not None:
        write_text(markdown, library.markdown(rows))
    if sheet is not None:
        _draw(sheet, pictures)
    facts = _conditions(model, loaded, renderer, made, repeats)
    if json:
        print_json(facts | {"rows": [row.as_json() for row in rows]})
        return
    results().print(library.table(rows))
    results().print(f"\n{len(made)} pictures of {visited} steps a run; seconds are the median of {repeats}")


def contestants(policy: Policy | None, profile: str | None, against: list[str]) -> "dict[str, Contestant]":
    """Return the profiles of the policy (or the one named), then the presets, by the name they are shown under."""
    if policy is None and not against:
        raise CachesmithError("there is nothing to compare; give --policy, --against, or both")
    entered: dict[str, Contestant] = {}
    if policy is not None:
        policy.profile(profile or next(iter(policy.document.profiles)))
        entered = {name: (policy, name) for name in policy.document.profiles if profile in (None, name)}
    for spec in (part for text in against for part in specs(text)):
        entered[spec] = parse_preset(spec), None
    return entered


def with_engines(
    policy: Policy | None, entered: "dict[str, Contestant]", loaded: "Engines"
) -> "dict[str, Contestant]":
    """Return the policy's profiles, and the uncached model, once more: computed by the bundle's engines."""
    mine = {name: c for name, c in entered.items() if c is not None and c[0] is policy}
    return {
        f"{name}, engines": (c[0], c[1], loaded)
        for name, c in {"uncached": (preset("uncached"), None), **mine}.items()
        if c is not None
    }


def specs(text: str) -> list[str]:
    """Split `taylorseer:interval=5,order=2,fora`: a comma before a bare KEY=VALUE parts options, else presets."""
    found: list[str] = []
    for part in text.split(","):
        if found and "=" in part and ":" not in part:
            found[-1] += f",{part}"
        else:
            found.append(part.strip())
    return found


def _draw(path: Path, pictures: "dict[str, Tensor]") -> None:
    from cachesmith.sampling.sheet import sheet

    write_picture(path, sheet(pictures, columns=COLUMNS))


def _conditions(
    model: str, policy: Policy | None, renderer: "Renderer", requests: "tuple[Request, ...]", repeats: int
) -> dict[str, Any]:
    """Return what a reader needs to judge and repeat the figures."""
    from cachesmith.sampling.timing import machine

    return {
        "model": model,
        "policy": None if policy is None else policy.id,
        "steps": renderer.steps,
        "samples": len(requests),
        "seeds": [requests[0].seed, requests[-1].seed],
        "batch": renderer.batch,
        "repeats": repeats,
        "dtype": str(renderer.pipe.dtype).removeprefix("torch."),
        "arguments": renderer.common,
        "machine": machine(renderer.pipe.device),
    }
