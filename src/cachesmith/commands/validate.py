"""`cachesmith validate`: does a policy still hold what its file promises?"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cachesmith.commands import options
from cachesmith.commands.failure import BELOW
from cachesmith.commands.output import print_json, results
from cachesmith.commands.pipeline import (
    arguments,
    check_steps,
    of_every_prompt,
    open_pipeline,
    require_requests,
    sampling,
)
from cachesmith.policies import Policy, Quality, load
from cachesmith.progress import stage
from cachesmith.sampling.heldout import heldout
from cachesmith.sampling.metrics import cells, headings, shown

if TYPE_CHECKING:
    from cachesmith.runtime.stats import Stats
    from cachesmith.sampling.metrics import Perceptual
    from cachesmith.sampling.pictures import Pictures
    from cachesmith.sampling.render import Renderer
    from cachesmith.sampling.requests import Request

_SLACK = 1.0
"""dB below the stored interval that other samples or another machine may cost."""

EXTRA, SHARE = 0.5, 0.02
"""Full computations above the stored number, and their share of it, that a gate which decides may take elsewhere."""


@dataclass(frozen=True)
class Verdict:
    """One profile: what the file says, what was measured, and what is wrong (empty: nothing)."""

    profile: str
    nfc: float
    stored: Quality | None
    measured: Quality
    problem: str


def validate(
    model: options.Model,
    policy: options.PolicyFile,
    prompts: options.Prompts,
    profile: options.ProfileName = None,
    min_psnr: Annotated[
        float | None, typer.Option("--min-psnr", metavar="Y", help="Fail below this mean PSNR in dB.")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=1, help="Pictures.", show_default="as many as the policy's, else 16"),
    ] = None,
    seed: options.HeldoutSeed = None,
    steps: options.StepsOption = None,
    *,
    calls: options.Sampling,
    batch: options.BatchSize = 32,
    loading: options.Loading,
    lpips: options.LpipsOption = None,
    json: options.Json = False,
) -> None:
    """Measure a policy's quality again and compare it with what its file says.

    The error is that against the uncached picture of the same seed. A profile fails if its mean PSNR is below
    --min-psnr, or more than 1 dB below the interval stored in the file, if it computes more than the file says, or if
    nothing was forecast at all; then the exit code is 3.

    Cost: every picture once uncached, and once by every profile.

    Example: cachesmith validate examples/fashion_dit/model --policy examples/fashion_dit/fashion.policy.safetensors
    --prompts examples/fashion_dit/prompts.jsonl --samples 8 --min-psnr 30
    """
    from cachesmith.sampling.lpips import load_lpips

    loaded = load(policy, token=loading.token)
    names = list(loaded.document.profiles) if profile is None else [profile]
    loaded.profile(names[0])
    check_steps(loaded, names, steps)
    perceptual = None if lpips is None else load_lpips(lpips)
    made = heldout(loaded, prompts, samples, seed, of_every_prompt(calls))
    pipe = open_pipeline(model, loading, loaded, arguments(calls, made))
    visited, common = sampling(pipe, loaded, steps, calls)
    require_requests(pipe, made, common, visited)

    from cachesmith.sampling.render import Renderer

    verdicts = _judge(Renderer(pipe, visited, batch, **common), loaded, names, made, min_psnr, perceptual)
    print_json(_as_json(loaded, visited, made, verdicts)) if json else results().print(_table(verdicts))
    if any(verdict.problem for verdict in verdicts):
        raise typer.Exit(BELOW)


def _judge(
    renderer: "Renderer",
    policy: Policy,
    names: list[str],
    requests: "tuple[Request, ...]",
    min_psnr: float | None,
    lpips: "Perceptual | None" = None,
) -> list[Verdict]:
    """Sample uncached and under every profile, and judge each.

    Raises `CachesmithError` where the uncached pictures are not finite.
    """
    from cachesmith.sampling.scores import tell_left_out

    tell_left_out(renderer, requests)

    with stage("sampling", len(requests) * (1 + len(names))) as advance:
        reference = renderer.reference(requests, advance)
        return [
            _judge_one(renderer, policy, name, requests, reference, min_psnr, lpips, advance)
            for name in names
        ]


def _judge_one(
    renderer: "Renderer",
    policy: Policy,
    name: str,
    requests: "tuple[Request, ...]",
    reference: "Pictures",
    min_psnr: float | None,
    lpips: "Perceptual | None",
    advance: Any,
) -> Verdict:
    from cachesmith.runtime import apply
    from cachesmith.sampling.requests import differing_arguments
    from cachesmith.sampling.scores import compare, summarise

    with apply(renderer.pipe, policy, name) as session:
        scores = compare(reference, renderer(requests, advance), lpips)
    measured = summarise(scores, seed=0, parts=differing_arguments(requests))
    promised = policy.profile(name)
    problem = _slowness(session.stats, promised.nfc) or _shortfall(measured.psnr, promised.quality, min_psnr)
    return Verdict(name, session.stats.nfc, promised.quality, measured, problem)


def _slowness(stats: "Stats", stored: float | None) -> str:
    if not sum(stats.forecast.values()):
        return "nothing was forecast"
    if stored is not None and stats.nfc > stored * (1 + SHARE) + EXTRA:
        return f"computes {stats.nfc:.2f} steps instead of the stored {stored:.2f}"
    return ""


def _shortfall(psnr: float, stored: Quality | None, min_psnr: float | None) -> str:
    if min_psnr is not None and psnr < min_psnr:
        return f"below --min-psnr {min_psnr:g}"
    if stored is not None and psnr < stored.psnr_low - _SLACK:
        return f"more than {_SLACK:g} dB below the stored {stored.psnr_low:.2f}"
    return ""


def _as_json(
    policy: Policy, steps: int, requests: "tuple[Request, ...]", verdicts: list[Verdict]
) -> dict[str, Any]:
    profiles = {
        v.profile: {
            "nfc": v.nfc,
            "stored": None if v.stored is None else v.stored.model_dump(mode="json"),
            "measured": v.measured.model_dump(mode="json"),
            "holds": not v.problem,
            "problem": v.problem,
        }
        for v in verdicts
    }
    return {"policy": policy.id, "steps": steps, "seeds": [r.seed for r in requests], "profiles": profiles}


def _table(verdicts: list[Verdict]) -> Table:
    metrics = shown([verdict.measured for verdict in verdicts])
    table = Table(box=None, pad_edge=False)
    table.add_column("profile")
    for heading in (
        "NFC",
        "stored PSNR dB (95 %)",
        f"measured {headings(metrics)[0]}",
        *headings(metrics)[1:],
    ):
        table.add_column(heading, justify="right")
    table.add_column("")
    for v in verdicts:
        said = f"[red]fails: {v.problem}[/red]" if v.problem else "[green]holds[/green]"
        table.add_row(
            v.profile, f"{v.nfc:.2f}", cells(v.stored, metrics)[0], *cells(v.measured, metrics), said
        )
    return table
