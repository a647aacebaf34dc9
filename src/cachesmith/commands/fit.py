"""`cachesmith fit`: fit one published method to a model and write it as a policy file."""

from pathlib import Path
from typing import Annotated

import typer

from cachesmith.commands import options
from cachesmith.commands.inspect import show
from cachesmith.commands.output import check_policy_file, results
from cachesmith.commands.pipeline import STEPS, check_requests, open_pipeline
from cachesmith.policies import save


def fit(
    model: options.Model,
    method: Annotated[
        str, typer.Option("--method", metavar="NAME", help="What to fit; a wrong name lists all.")
    ],
    prompts: options.Prompts,
    out: Annotated[
        Path, typer.Option("--out", metavar="X.policy.safetensors", help="The policy file to write.")
    ],
    steps: Annotated[int, typer.Option("--steps", min=2, help="Sampler steps to fit for.")] = STEPS,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Uncached samples to fit on.")] = 8,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="An option of the method, such as interval=6; may be repeated."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Seed of the first sample; the next ones count up.")
    ] = 0,
    guidance_scale: Annotated[
        float | None,
        typer.Option("--guidance-scale", min=0, help="Guidance scale.", show_default="the pipeline's"),
    ] = None,
    batch: options.Batch = 8,
    dtype: options.Precision = None,
    device: options.Device = None,
) -> None:
    """Fit one published method to a model and write it as a policy file.

    Some methods need numbers of the model they run on: TeaCache a polynomial, MagCache magnitude ratios, HyCa a solver
    for each group of channels. This samples a few prompts uncached, computes those numbers, and binds the policy to
    model and sampler. For the best policy at a given speed use `cachesmith calibrate`, which searches; use this to
    compare with a method as published, or to get its numbers for another tool (`cachesmith convert`).

    `--set` takes the method's own options; a wrong one lists them.
    """
    from cachesmith.calibrate.fitting import check_method, fit_method, read_options
    from cachesmith.sampling.requests import read_prompts, requests

    check_policy_file(out)
    given = read_options(setting or [])
    check_method(method, given)
    wanted = requests(read_prompts(prompts), samples, seed)
    pipe = open_pipeline(model, device, dtype)
    common = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
    check_requests(pipe, wanted, common)
    policy = fit_method(pipe, method, wanted, steps, batch, common, given)
    out.parent.mkdir(parents=True, exist_ok=True)
    save(policy, out)
    show(policy)
    results().print(f"\nsaved {out}", markup=False, soft_wrap=True)
