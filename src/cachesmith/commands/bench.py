"""`cachesmith bench`: profiles and published methods side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachesmith.commands import options
from cachesmith.commands.output import print_json, results, say, write_picture, write_text
from cachesmith.commands.pipeline import (
    arguments,
    check_engines,
    check_steps,
    engines,
    largest_batch,
    of_every_prompt,
    open_pipeline,
    require_requests,
    sampling,
)
from cachesmith.commands.shared import completion
from cachesmith.commands.shared.config_file import used_config
from cachesmith.commands.shared.destination import check_file, check_picture
from cachesmith.policies import CachesmithError, Policy, load, parse_preset, preset
from cachesmith.progress import bars
from cachesmith.sampling.heldout import heldout

if TYPE_CHECKING:
    from cachesmith.runtime import Engines
    from cachesmith.sampling.bench import BenchRow, Contestant
    from cachesmith.sampling.pictures import Pictures, Samples
    from cachesmith.sampling.render import Renderer
    from cachesmith.sampling.requests import Request

COLUMNS = 8
"""Samples on a sheet."""


def bench(
    model: options.Model,
    prompts: options.Prompts,
    policy: options.MaybePolicyFile = None,
    profile: options.ProfileName = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="PRESET",
            help="A published method with options, such as taylorseer:interval=5,order=2; may be repeated.",
            autocompletion=completion.presets,
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Pictures.")] = 16,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="Timed runs of each; the median counts.")
    ] = 3,
    seed: options.HeldoutSeed = None,
    steps: options.StepsOption = None,
    *,
    calls: options.Sampling,
    batch: options.BatchSize = 32,
    loading: options.Loading,
    engine: options.EngineOptions,
    lpips: options.LpipsOption = None,
    markdown: Annotated[
        Path | None,
        typer.Option(
            "--markdown",
            metavar="FILE",
            help="Write the table as Markdown.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--sheet",
            metavar="FILE",
            help="Write a sheet of pictures and differences.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Compare a policy's profiles with published methods: speed, quality and memory.

    All sample the same prompts and seeds in one process. Quality is the error against the uncached pictures; speed is
    the median wall time of whole runs, taken in turns; p50, p90 and p99 are seconds of one pipeline call, of --batch
    pictures; efficiency is the measured speed-up divided by steps / NFC.

    Cost: 1 + --repeats runs of all pictures, uncached and by every row.

    Example: cachesmith bench examples/fashion_dit/model --policy examples/fashion_dit/fashion.policy.safetensors
    --prompts examples/fashion_dit/prompts.jsonl --samples 8 --against taylorseer:interval=5,order=2
    """
    _check_outputs(markdown, sheet, force)
    check_engines(engine)

    from cachesmith.sampling.bench import latency_table, table
    from cachesmith.sampling.lpips import load_lpips
    from cachesmith.sampling.render import Renderer

    perceptual = None if lpips is None else load_lpips(lpips)
    loaded = None if policy is None else load(policy, token=loading.token)
    entered = contestants(loaded, profile, against or [])
    check_steps(
        loaded, () if loaded is None else [n for n in loaded.document.profiles if n in entered], steps
    )
    requests = heldout(loaded, prompts, samples, seed, of_every_prompt(calls))
    pipe = open_pipeline(model, loading, loaded, arguments(calls, requests))
    visited, common = sampling(pipe, loaded, steps, calls)
    require_requests(pipe, requests, common, visited)
    opened = engines(engine, pipe)
    if opened is not None:
        entered |= with_engines(loaded, entered, opened)
    renderer = Renderer(pipe, visited, largest_batch(opened, batch, loaded), **common)
    rows, pictures = _race(renderer, entered, requests, repeats, perceptual)
    _write(markdown, sheet, rows, pictures)
    if json:
        facts = _conditions(model, loaded, renderer, requests, repeats)
        print_json(facts | {"rows": [row.as_json() for row in rows]})
        return
    results().print(table(rows))
    say(f"\n{len(requests)} pictures of {visited} steps a run; seconds are the median of {repeats}\n")
    results().print(latency_table(rows))
    say(f"\np50, p90 and p99 are of single pipeline calls, of at most {renderer.batch} pictures each")


def _check_outputs(markdown: Path | None, sheet: Path | None, force: bool) -> None:
    if markdown is not None:
        check_file(markdown, "--markdown", force)
    if sheet is not None:
        check_picture(sheet, "--sheet", force)


def _race(
    renderer: "Renderer",
    entered: "dict[str, Contestant]",
    requests: "tuple[Request, ...]",
    repeats: int,
    lpips: Any,
) -> "tuple[list[BenchRow], dict[str, Samples]]":
    """Return the rows, and the first pictures of each."""
    from cachesmith.sampling.bench import bench as compare

    pictures: dict[str, Samples] = {}

    def keep(name: str, sampled: "Pictures") -> None:
        pictures[name] = sampled[:COLUMNS].image_samples

    with bars() as progress:
        rows = compare(renderer, entered, requests, repeats, progress=progress, keep=keep, lpips=lpips)
    return rows, pictures


def _write(
    markdown: Path | None, sheet: Path | None, rows: "list[BenchRow]", pictures: "dict[str, Samples]"
) -> None:
    if markdown is not None:
        from cachesmith.sampling.bench import markdown as written

        write_text(markdown, written(rows))
    if sheet is not None:
        from cachesmith.sampling.sheet import sheet as draw

        write_picture(sheet, draw(pictures, columns=COLUMNS))


def contestants(policy: Policy | None, profile: str | None, against: list[str]) -> "dict[str, Contestant]":
    """Return the profiles of the policy (or the one named), then the presets, by the name they are shown under."""
    if policy is None and not against:
        raise CachesmithError("there is nothing to compare; give --policy, --against, or both")
    entered: dict[str, Contestant] = {}
    if policy is not None:
        policy.profile(profile or next(iter(policy.document.profiles)))
        entered = {name: (policy, name) for name in policy.document.profiles if profile in (None, name)}
    for spec in (part for text in against for part in split_specs(text)):
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


def split_specs(text: str) -> list[str]:
    """Split `taylorseer:interval=5,order=2,fora`: a comma before a bare KEY=VALUE parts options, else presets."""
    found: list[str] = []
    for part in text.split(","):
        if found and "=" in part and ":" not in part:
            found[-1] += f",{part}"
        else:
            found.append(part.strip())
    return found


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
        "config": used_config(),
    }
