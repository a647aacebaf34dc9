"""`cachesmith calibrate`: measure a model and write its policy file."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachesmith.commands import options
from cachesmith.commands.failure import INTERRUPTED, complain, need
from cachesmith.commands.output import print_json, say, write_text
from cachesmith.commands.pipeline import STEPS, check_requests, open_pipeline
from cachesmith.commands.shared import completion
from cachesmith.commands.shared.config_file import used_config
from cachesmith.commands.shared.destination import check_folder, check_policy_file
from cachesmith.commands.show.policy import as_json, show
from cachesmith.policies import SUFFIX, load, save

if TYPE_CHECKING:
    from cachesmith.calibrate import CalibrationConfig, CalibrationResult


def calibrate(
    model: options.Model,
    prompts: options.Prompts,
    out: options.NewPolicyFile,
    steps: Annotated[
        int,
        typer.Option(
            "--num-inference-steps",
            min=8,
            help="Sampler steps to calibrate for.",
            rich_help_panel=options.SAMPLING,
        ),
    ] = STEPS,
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Policies to try; more find better ones.")
    ] = 60,
    speedup: Annotated[
        list[float] | None,
        typer.Option(
            "--speedup",
            min=1,
            metavar="S",
            help="Add a profile that computes at most steps / S; may be repeated.",
        ),
    ] = None,
    min_psnr: Annotated[
        float | None,
        typer.Option("--min-psnr", metavar="Y", help="Add the fastest profile that holds this PSNR in dB."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same policy.")] = 0,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            "--guidance-scale",
            min=0,
            help="Guidance scale.",
            show_default="the pipeline's",
            rich_help_panel=options.SAMPLING,
        ),
    ] = None,
    fitting: Annotated[int, typer.Option("--fitting", min=1, help="Samples that drive the search.")] = 64,
    validation: Annotated[
        int, typer.Option("--validation", min=1, help="Samples that pick among candidates.")
    ] = 32,
    heldout: Annotated[
        int, typer.Option("--heldout", min=1, help="Samples measured last, for the record.")
    ] = 64,
    moves: Annotated[
        int,
        typer.Option("--moves", min=0, help="Moves of a computed step to try on each profile's schedule."),
    ] = 150,
    iterations: Annotated[
        int,
        typer.Option(
            "--iterations",
            min=0,
            help="Gradient steps spent on each profile's weights; without --from, about as many go into the "
            "choice of its schedule.",
        ),
    ] = 200,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Compute blocks twice for their gradients rather than keep their activations: for large models.",
        ),
    ] = False,
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
            help="Start from the schedules and weights of an earlier policy.",
            autocompletion=completion.policy_files,
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="DIR", help="Write a report with figures there.")
    ] = None,
    lpips: options.Lpips = None,
    batch: options.Batch = 32,
    *,
    loading: options.Loading,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Measure a model on a few prompts and write a policy file.

    Searches when every part of the network must be computed and how to forecast it otherwise, judging every candidate
    by real sampling runs, and measures the best again on prompts and seeds that the search never saw. Stop it with
    Ctrl-C at any time: the same command goes on where it stopped.

    Cost: thousands of cached pictures; the fewer samples, trials, moves and iterations, the less. What is done is kept
    in --work.

    Example: cachesmith calibrate examples/fashion_dit/model --prompts examples/fashion_dit/prompts.jsonl
    --guidance-scale 1.5 --trials 8 --fitting 8 --validation 8 --heldout 8 --moves 4 --iterations 4
    --out fashion.policy.safetensors
    """
    kept = work or out.with_name(out.name.removesuffix(SUFFIX) + ".work")
    need("optuna", "sklearn", "torchmetrics")
    check_policy_file(out, force)
    check_folder(kept, "--work")
    if report is not None:
        need("matplotlib")
        check_folder(report, "--report")

    from cachesmith.calibrate import CalibrationConfig
    from cachesmith.sampling.requests import read_prompts, requests

    read = read_prompts(prompts)
    config = CalibrationConfig(
        steps=steps,
        trials=trials,
        seed=seed,
        speedups=tuple(speedup or ()),
        min_psnr=min_psnr,
        fitting=fitting,
        validation=validation,
        heldout=heldout,
        batch=batch,
        moves=moves,
        iterations=iterations,
        gradient_checkpointing=gradient_checkpointing,
        guidance_scale=guidance_scale,
        name=_name(out),
        work=kept,
        report=report,
        earlier=None if earlier is None else load(earlier),
        lpips=lpips,
    )
    common = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
    wanted = requests(read, len(read), seed)
    pipe = open_pipeline(model, loading, given={*common}.union(*(request.arguments for request in wanted)))
    check_requests(pipe, wanted, common)
    result = _resumable(pipe, read, config)
    out.parent.mkdir(parents=True, exist_ok=True)
    save(result.policy, out)
    if report is not None:
        write_text(report / "config.yaml", used_config())
    if json:
        print_json({"file": str(out), "report": report and str(report), **as_json(result.policy)})
        return
    show(result.policy)
    say(f"\nsaved {out}" + (f", report in {report}" if report else ""))


def _name(out: Path) -> str:
    """Return the policy's name: its file's, without what a name may not hold."""
    letters = re.sub(r"[^A-Za-z0-9_.-]+", "-", out.name.removesuffix(SUFFIX))
    return letters.lstrip("_.-")[:80] or "policy"


def _resumable(pipe: Any, prompts: Any, config: "CalibrationConfig") -> "CalibrationResult":
    from cachesmith.calibrate import calibrate

    try:
        return calibrate(pipe, prompts, config)
    except KeyboardInterrupt:
        complain(f"interrupted; what is done is kept in {config.work}: run the same command again to go on")
        raise typer.Exit(INTERRUPTED) from None
