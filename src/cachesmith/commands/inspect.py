"""`cachesmith inspect`: show what a policy file says. Needs no torch, no model and no GPU."""

from pathlib import Path
from typing import Annotated

import typer

from cachesmith.commands.options import Json, ProfileName
from cachesmith.commands.output import print_json
from cachesmith.commands.shared import completion
from cachesmith.commands.show.bundle import inspect_bundle
from cachesmith.commands.show.plan import inspect_plan
from cachesmith.commands.show.policy import as_json, show
from cachesmith.policies import load


def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="X",
            help="Policy file, bundle, or USER/NAME or USER/NAME@REVISION on the Hugging Face Hub.",
            autocompletion=completion.policy_files,
        ),
    ],
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what is done with every unit at every step.")
    ] = False,
    profile: ProfileName = None,
    json: Json = False,
) -> None:
    """Show what a policy file says: its model, its profiles, and how they were calibrated. Or verify and show a bundle.

    In a gate's timeline every letter is one sampler step: C computed, F forecast, H one half of guidance computed.

    Cost: none for a policy; a bundle's files are read once.

    Example: cachesmith inspect examples/fashion_dit/fashion.policy.safetensors --plan --profile fast
    """
    if file.is_dir():
        inspect_bundle(file, json)
        return
    policy = load(file)
    if plan:
        inspect_plan(policy, profile, json)
    elif json:
        print_json(as_json(policy))
    else:
        show(policy)
