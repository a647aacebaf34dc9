"""`cachesmith push`: a policy with its card to the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

import typer

from cachesmith.commands.options import Json
from cachesmith.commands.output import print_json, say
from cachesmith.policies import CachesmithError, load


def push(
    file: Annotated[Path, typer.Argument(metavar="POLICY", help="The policy file, X.policy.safetensors.")],
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository; made if missing.")],
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="DIR", help="The report of its calibration: seconds, hardware, cost."
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model", metavar="ORG/NAME", help="The model it was calibrated on, for the card."
        ),
    ] = None,
    base_revision: Annotated[
        str | None, typer.Option("--base-revision", metavar="R", help="That model's revision.")
    ] = None,
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Of a new repository.", show_default="the account's"),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="A branch; made if missing.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="HF_TOKEN",
            help="A token with the right to write.",
            show_default="`hf auth login`",
        ),
    ] = None,
    message: Annotated[str | None, typer.Option("--message", help="The commit's message.")] = None,
    dry_run: Annotated[
        Path | None,
        typer.Option(
            "--dry-run", metavar="DIR", help="Write what would be uploaded there, and upload nothing."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Upload a policy to the Hugging Face Hub, with a generated card.

    The card says what the policy is for and what it costs: base model, sampler, profiles with their held-out quality
    and, with --report, measured seconds, hardware, the calibration's cost and its command. Policy, card and pictures
    are one commit. `load("USER/NAME")` and `--policy USER/NAME` read it from there.

    Cost: none but the upload; no model is needed.

    Example: cachesmith push fashion.policy.safetensors user/fashion-policy --report out/report --base-model
    user/fashion
    """
    from cachesmith.hub import files_of
    from cachesmith.hub import push as upload
    from cachesmith.hub.card import Base

    policy = load(file)
    if dry_run is None:
        address = upload(
            policy, repository, base_model=base_model, base_revision=base_revision, report=report,
            private=private, revision=revision, token=token, message=message,
        )  # fmt: skip
        print_json({"address": address, "id": policy.id}) if json else say(f"pushed {file} to {address}")
        return
    if dry_run.exists() and any(dry_run.iterdir()):
        raise CachesmithError(f"{dry_run} is not empty; give --dry-run a new folder")
    files = files_of(repository, policy, Base(base_model, base_revision), report)
    dry_run.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (dry_run / name).write_bytes(content)
    if json:
        print_json({"folder": str(dry_run), "files": list(files), "id": policy.id})
        return
    say(f"wrote {', '.join(files)} to {dry_run}")
