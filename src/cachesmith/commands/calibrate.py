"""`cachesmith calibrate`: measure a model and write its policy file."""

import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachesmith.commands import options
from cachesmith.commands.failure import INTERRUPTED, complain, need
from cachesmith.commands.output import note, print_json, say, write_text
from cachesmith.commands.pipeline import (
    STEPS,
    hush_libraries,
    of_every_prompt,
    open_pipeline,
    open_pipeline_on,
    require_requests,
)
from cachesmith.commands.shared import completion
from cachesmith.commands.shared.config_file import used_config
from cachesmith.commands.shared.destination import check_folder, check_policy_file
from cachesmith.commands.shared.device import planned, usual_dtype
from cachesmith.commands.shared.model_folder import check_model_name, hollow_transformer
from cachesmith.commands.show.policy import as_json, show
from cachesmith.policies import SUFFIX, CachesmithError, load

if TYPE_CHECKING:
    from cachesmith.calibrate import CalibrationConfig, CalibrationResult
    from cachesmith.sampling.requests import Request


CONFIG = "config.yaml"
"""File of a report that repeats the command."""


class OffloadOption(StrEnum):
    """What of a model waits in the host's memory."""

    none = "none"
    model = "model"


class SpaceOption(StrEnum):
    """What is searched."""

    stack = "stack"
    rfc = "rfc"


def calibrate(
    model: options.Model,
    prompts: options.Prompts,
    out: options.NewPolicyFile,
    steps: Annotated[
        int,
        typer.Option(
            "--num-inference-steps",
            min=4,
            help="Sampler steps to calibrate for.",
            rich_help_panel=options.SAMPLING,
        ),
    ] = STEPS,
    budget: Annotated[
        float,
        typer.Option(
            "--budget",
            min=10,
            metavar="RUNS",
            help="What may be spent, in uncached runs of one sample, held-out measurements aside.",
        ),
    ] = 100.0,
    time: Annotated[
        str | None,
        typer.Option("--time", metavar="45m", help="The budget as a time: it is set once a batch is timed."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what the budget is spent on, and load no weights.")
    ] = False,
    speedup: Annotated[
        list[float] | None,
        typer.Option(
            "--speedup",
            min=1,
            metavar="S",
            help="A profile that computes at most steps / S; may be repeated.",
            show_default="3.5, 5 and 7; up to 8 steps 1.6, 2 and 2.6",
        ),
    ] = None,
    min_psnr: Annotated[
        float | None,
        typer.Option("--min-psnr", metavar="Y", help="Add the fastest profile that holds this PSNR in dB."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same policy.")] = 0,
    fitting: Annotated[
        int | None,
        typer.Option(
            "--fitting", min=1, help="Samples that are fitted on.", show_default="as the budget has it"
        ),
    ] = None,
    heldout: Annotated[
        int, typer.Option("--heldout", min=1, help="Samples measured last, for the record.")
    ] = 32,
    space: Annotated[
        SpaceOption,
        typer.Option(
            "--space", help="Weights of the whole stack, or RFE's scales and RCS's thresholds of modules."
        ),
    ] = SpaceOption.stack,
    objective: Annotated[
        str,
        typer.Option(
            "--objective",
            metavar="METRIC",
            help="What schedules are compared by: psnr, ssim, lpips, latent_error or another metric's name.",
            autocompletion=completion.metrics,
        ),
    ] = "psnr",
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Trials of --space rfc at most, within the budget.")
    ] = 60,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            metavar="URL",
            help="Where Optuna keeps its studies, such as sqlite:///studies.db.",
            show_default="a journal in the work folder",
        ),
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--gradient-checkpointing/--no-gradient-checkpointing",
            help="Compute blocks twice for their gradients rather than keep their activations: for large models.",
            show_default="as free memory has it",
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            min=1,
            metavar="N",
            help="Share the samples among N processes, one a GPU; the policy differs by rounding alone.",
            rich_help_panel=options.FLEET,
        ),
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="The workers beside this process are actors of a Ray cluster: HOST:6379, auto or local.",
            rich_help_panel=options.FLEET,
        ),
    ] = None,
    offload: Annotated[
        OffloadOption,
        typer.Option(
            "--offload",
            help="model: each component is on the GPU only while it computes.",
            rich_help_panel=options.MODEL,
        ),
    ] = OffloadOption.none,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work",
            metavar="DIR",
            help="Where trials are kept for resuming.",
            show_default="X.work beside X",
        ),
    ] = None,
    earlier: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="POLICY",
            help="Go on from the schedules and weights of an earlier policy.",
            autocompletion=completion.policy_files,
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="DIR", help="Write a report with figures there.")
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option(
            help="Measure fewer steps, even steps, TaylorSeer and DBCache for the report, too: as many runs again."
        ),
    ] = True,
    lpips: options.LpipsOption = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            min=1,
            help="Largest number of pictures sampled at once.",
            show_default="as free memory has it, at most 8",
            rich_help_panel=options.SAMPLING,
        ),
    ] = None,
    unused: Annotated[
        int | None, typer.Option("--validation", "--moves", "--iterations", hidden=True)
    ] = None,
    *,
    calls: options.Sampling,
    loading: options.Loading,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Measure a model on a few prompts and write a policy file.

    Fits, in real sampling runs, when the network must be computed and how to forecast it otherwise, within a budget,
    and measures the result on prompts and seeds that it never saw. Stop it with Ctrl-C at any time: the same command
    goes on where it stopped.

    Cost: what --budget says, and the held-out samples; --dry-run tells it in advance. What is done is kept in --work.

    Example: cachesmith calibrate examples/fashion_dit/model --prompts examples/fashion_dit/prompts.jsonl
    --guidance-scale 1.5 --budget 20 --heldout 8 --speedup 7 --out fashion.policy.safetensors
    """
    if unused is not None:
        note("--validation, --moves and --iterations are no longer used: --budget says what is spent")
    kept = work or out.with_name(out.name.removesuffix(SUFFIX) + ".work")
    need("optuna", "sklearn", "torchmetrics", *([] if ray is None else ["ray"]))
    check_policy_file(out, force or dry_run)
    check_folder(kept, "--work")
    if report is not None:
        need("matplotlib")
        _check_report(report, force or dry_run)
    hush_libraries()

    from cachesmith.calibrate import CalibrationConfig
    from cachesmith.sampling.requests import completed, read_prompts, requests

    read = completed(read_prompts(prompts), of_every_prompt(calls))
    config = CalibrationConfig(
        steps=steps,
        budget=budget,
        seconds=None if time is None else _seconds(time),
        speedups=tuple(speedup or ()),
        min_psnr=min_psnr,
        fitting=fitting,
        heldout=heldout,
        batch=batch,
        seed=seed,
        space=space.value,
        trials=trials,
        storage=storage,
        gradient_checkpointing=gradient_checkpointing,
        guidance_scale=calls.guidance_scale,
        name=_name(out),
        work=kept,
        out=out,
        report=report,
        baselines=baselines,
        earlier=None if earlier is None else load(earlier, token=loading.token),
        lpips=lpips,
        objective=objective,
        workers=workers,
        ray=ray,
    )
    wanted = requests(read, len(read), 0)
    if dry_run:
        _tell_plan(model, loading, config, wanted, offload, json)
        return
    given = {*config.common}.union(*(request.arguments for request in wanted))
    offloaded = offload is OffloadOption.model
    pipe = open_pipeline(model, loading, given=given, offload=offloaded)
    require_requests(pipe, wanted, config.common, steps)
    # workers of a cluster begin in a folder of their own
    place = str(Path(model).resolve()) if Path(model).is_dir() else model
    load_on = partial(open_pipeline_on, place, loading, offload=offloaded)
    result = _resumable(pipe, read, config, load_on)
    if report is not None:
        write_text(report / CONFIG, used_config())

    from cachesmith.calibrate.studies import dashboard

    command = dashboard(storage, kept)
    if json:
        files = {"file": str(out), "report": report and str(report), "dashboard": command}
        print_json({**files, **as_json(result.policy)})
        return
    show(result.policy)
    say(f"\nsaved {out}" + (f", report in {report}" if report else ""))
    if command is not None:
        say(f"every trial: {command}")


def _check_report(folder: Path, force: bool) -> None:
    from cachesmith.calibrate.report.report import FILES

    check_folder(folder, "--report", (*FILES, CONFIG), force)


def _seconds(text: str) -> float:
    """Read a length of time such as `45m`, `1.5h` or `90s`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip().lower())
    if found is None:
        raise CachesmithError(f"{text!r} is no length of time; write for example 45m, 2h or 90s")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def _tell_plan(
    model: str,
    loading: options.Loading,
    config: "CalibrationConfig",
    requests: "Sequence[Request]",
    offload: OffloadOption,
    json: bool,
) -> None:
    from cachesmith.calibrate.cost.dry_run import describe_plan, plan_as_json
    from cachesmith.calibrate.memory.choice import free_memory
    from cachesmith.calibrate.memory.plan import memory_plan

    if config.seconds is not None:
        raise CachesmithError("--time is known only once a batch is timed; give --budget with --dry-run")
    check_model_name(model, loading)
    place, here = planned(loading.device)
    if not here:
        note(f"this machine has no {place}: the plan is for one with memory enough")
    dtype, offloaded = loading.dtype or usual_dtype(place), offload is OffloadOption.model
    free = free_memory(place) if here else None
    memory = memory_plan(Path(model), config, requests, dtype, free, offloaded)
    if json:
        print_json(plan_as_json(config, memory))
        return
    say(describe_plan(hollow_transformer(model, loading), config, memory))


def _name(out: Path) -> str:
    """Return the policy's name: its file's, without what a name may not hold."""
    letters = re.sub(r"[^A-Za-z0-9_.-]+", "-", out.name.removesuffix(SUFFIX))
    return letters.lstrip("_.-")[:80] or "policy"


def _resumable(
    pipe: Any, prompts: Any, config: "CalibrationConfig", load_on: Callable[[str], Any]
) -> "CalibrationResult":
    from cachesmith.calibrate import calibrate

    try:
        return calibrate(pipe, prompts, config, load_on)
    except KeyboardInterrupt:
        saved = config.out is not None and config.out.exists()
        again = "again with --force" if saved else "again"
        complain(f"interrupted; what is done is kept in {config.work}: run the same command {again} to go on")
        raise typer.Exit(INTERRUPTED) from None
