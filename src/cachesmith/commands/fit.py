"""`cachesmith fit`: fit one published method to a model and write it as a policy file."""

from typing import Annotated

import typer

from cachesmith.commands import options
from cachesmith.commands.failure import need
from cachesmith.commands.output import print_json, say
from cachesmith.commands.pipeline import (
    STEPS,
    arguments,
    negative_of,
    open_pipeline,
    require_requests,
    sampling,
)
from cachesmith.commands.shared import completion
from cachesmith.commands.shared.destination import check_policy_file
from cachesmith.commands.show.policy import as_json, show
from cachesmith.policies import save


def fit(
    model: options.Model,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="NAME",
            help=f"What to fit: {', '.join(completion.METHOD_NAMES)}.",
            autocompletion=completion.methods,
        ),
    ],
    prompts: options.Prompts,
    out: options.NewPolicyFile,
    steps: Annotated[
        int,
        typer.Option(
            "--num-inference-steps",
            min=2,
            help="Sampler steps to fit for.",
            rich_help_panel=options.SAMPLING,
        ),
    ] = STEPS,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Uncached samples to fit on.")] = 8,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="An option of the method, such as interval=6; may be repeated."
        ),
    ] = None,
    seed: options.SeedOption = 0,
    *,
    calls: options.Sampling,
    batch: options.BatchSize = 8,
    loading: options.Loading,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Fit one published method to a model and write it as a policy file.

    Some methods need numbers of the model they run on: TeaCache a polynomial, MagCache magnitude ratios, HyCa a solver
    for each group of channels. This samples a few prompts uncached, computes those numbers, and binds the policy to
    model and sampler. For the best policy at a given speed use `cachesmith calibrate`, which searches; use this to
    compare with a method as published, or to get its numbers for another tool (`cachesmith convert`).

    `--set` takes the method's own options; a wrong one lists them.

    Cost: --samples pictures uncached, and minutes of fitting.

    Example: cachesmith fit examples/fashion_dit/model --method hyca --prompts examples/fashion_dit/prompts.jsonl
    --set interval=6 --out hyca.policy.safetensors
    """
    need("optuna", "sklearn")
    check_policy_file(out, force)

    from cachesmith.calibrate.fitting import check_method, fit_method, read_options
    from cachesmith.sampling.requests import completed, read_prompts, requests

    given = read_options(setting or [])
    check_method(method, given)
    wanted = requests(completed(read_prompts(prompts), negative_of(calls)), samples, seed)
    pipe = open_pipeline(model, loading, given=arguments(calls, wanted))
    _, common = sampling(pipe, None, steps, calls)
    require_requests(pipe, wanted, common, steps)
    policy = fit_method(pipe, method, wanted, steps, batch, common, given)
    out.parent.mkdir(parents=True, exist_ok=True)
    save(policy, out)
    if json:
        print_json({"file": str(out), **as_json(policy)})
        return
    show(policy)
    say(f"\nsaved {out}")
