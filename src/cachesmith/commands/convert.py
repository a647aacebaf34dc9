"""`cachesmith convert`: policies from, and for, other caching tools."""

from pathlib import Path
from typing import Annotated

import typer

from cachesmith.commands.options import ProfileName
from cachesmith.commands.output import check_policy_file, errors, results, write_text
from cachesmith.policies import CachesmithError, load, save
from cachesmith.policies.convert import (
    SOURCES,
    TARGETS,
    export_profile,
    import_settings,
    read_settings,
    write_settings,
)


def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Another tool's settings, or a policy file.")],
    out: Annotated[Path, typer.Option("--out", metavar="X", help="The file to write.")],
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="FORMAT", help=f"Read FILE as one of: {', '.join(SOURCES)}."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="FORMAT", help=f"Write the policy in FILE as one of: {', '.join(TARGETS)}."
        ),
    ] = None,
    profile: ProfileName = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Sampler steps, where FILE does not say.")
    ] = None,
    order: Annotated[
        int | None,
        typer.Option(
            "--order",
            min=0,
            max=4,
            help="Export the schedule only, with this Taylor order (0: reuse) as forecaster.",
        ),
    ] = None,
) -> None:
    """Read other tools' settings as a policy, or write a policy's schedule for them.

    With --from, FILE holds the fields of a diffusers cache config, cache-dit's YAML, SmoothCache's schedule, TeaCache's
    {"coefficients": [...], "threshold": 0.25} or a mask such as 110010, as JSON or YAML, and X is the policy file to
    write.

    With --to, FILE is a policy file and X the other tool's: `cache_dit.load_configs(X)`, or the fields of
    `diffusers.TaylorSeerCacheConfig`. Only schedules that are settled before sampling, with reuse or Taylor forecasts,
    exist there; anything else is refused by name, never approximated in silence.
    """
    if (source is None) == (target is None):
        raise CachesmithError(
            "say what FILE is: --from FORMAT to read another tool's settings, --to FORMAT to write them"
        )
    if source is not None:
        _import(file, source, out, steps)
    elif target is not None:
        _export(file, target, out, profile, steps, order)
    results().print(f"saved {out}", markup=False, soft_wrap=True)


def _import(file: Path, source: str, out: Path, steps: int | None) -> None:
    check_policy_file(out)
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CachesmithError(f"{file} is no text file; give the settings as JSON or YAML") from None
    converted = import_settings(read_settings(text), source, steps)
    out.parent.mkdir(parents=True, exist_ok=True)
    save(converted.policy, out)
    _say(converted.notes)


def _export(
    file: Path, target: str, out: Path, profile: str | None, steps: int | None, order: int | None
) -> None:
    values, notes = export_profile(load(file), target, profile, steps, order)
    write_text(out, write_settings(values, TARGETS[target][1], notes))
    _say(notes)


def _say(notes: tuple[str, ...]) -> None:
    for note in notes:
        errors().print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
