"""`cachesmith edit`: change what a policy file says without measuring anew, in a new file with a new id."""

from json import dumps
from pathlib import Path
from typing import Annotated, get_args

import typer

from cachesmith.commands.options import Force, Json
from cachesmith.commands.output import print_json, say
from cachesmith.commands.shared.destination import check_policy_file
from cachesmith.policies import Action, CachesmithError, Mismatch, Policy, load, save
from cachesmith.policies.errors import refusing


def edit(
    file: Annotated[Path, typer.Argument(metavar="X", help="Policy file, X.policy.safetensors.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="Y", help="The policy file to write.")],
    mismatch: Annotated[
        list[str] | None,
        typer.Option(
            "--mismatch",
            metavar="KEY=ACTION",
            help=f"What to do where KEY differs from what the policy was made for. KEY: "
            f"{', '.join(Mismatch.model_fields)}. ACTION: {', '.join(get_args(Action))}.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Another name for the policy.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a policy file with other actions for differences, or another name.

    A policy is compared with the model and the sampler at every run. What happens at a difference is part of the file:
    refuse (error), say so (warn), sample without caching (disable), or move the schedule to the other noise levels
    (remap, for steps and sigmas). Everything else stays as it was measured; the id is new, X stays as it is.

    Cost: none; no model is needed.

    Example: cachesmith edit examples/fashion_dit/fashion.policy.safetensors --mismatch size=error
    --out strict.policy.safetensors
    """
    check_policy_file(out, force)
    policy = load(file)
    changes: dict[str, object] = {} if name is None else {"name": name}
    if mismatch:
        changes["mismatch"] = policy.document.mismatch.model_dump() | _actions(mismatch)
    if not changes:
        raise CachesmithError("say what to change: --mismatch KEY=ACTION or --name NAME")
    with refusing("the change"):
        document = type(policy.document).model_validate_json(_changed(policy, changes))
    edited = Policy(document, policy.arrays)
    out.parent.mkdir(parents=True, exist_ok=True)
    save(edited, out)
    if json:
        print_json({"file": str(out), "id": edited.id, "was": policy.id})
        return
    say(f"saved {out} (id {edited.id}, was {policy.id})")


def _changed(policy: Policy, changes: dict[str, object]) -> str:
    return dumps(policy.document.model_dump(mode="json") | changes)


def _actions(settings: list[str]) -> dict[str, str]:
    """Read `KEY=ACTION` settings."""
    actions: dict[str, str] = {}
    for setting in settings:
        key, equals, action = (part.strip() for part in setting.partition("="))
        if not equals or key not in Mismatch.model_fields:
            raise CachesmithError(
                f"cannot read {setting!r}; write KEY=ACTION with a KEY of {', '.join(Mismatch.model_fields)}"
            )
        if action not in get_args(Action):
            raise CachesmithError(
                f"{action!r} is no action; write {key}= and one of {', '.join(get_args(Action))}"
            )
        if action == "remap" and key not in ("steps", "sigmas"):
            raise CachesmithError(f"only steps and sigmas can be remapped; write {key}=warn to allow another")
        actions[key] = action
    return actions
