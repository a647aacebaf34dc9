"""`cachesmith convert`: policies from, and for, other caching tools."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cachesmith.commands.options import Force, Json, ProfileName
from cachesmith.commands.output import note, print_json, say, write_text
from cachesmith.commands.shared import completion
from cachesmith.commands.shared.destination import check_file, check_policy_file
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
        typer.Option(
            "--from",
            metavar="FORMAT",
            help=f"Read FILE as one of: {', '.join(SOURCES)}.",
            autocompletion=completion.source_formats,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help=f"Write the policy in FILE as one of: {', '.join(TARGETS)}.",
            autocompletion=completion.target_formats,
        ),
    ] = None,
    profile: ProfileName = None,
    steps: Annotated[
        int | None,
        typer.Option("--num-inference-steps", min=1, help="Sampler steps, where FILE does not say."),
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
    mask: Annotated[
        str | None,
        typer.Option(
            "--mask", metavar="CCFF...", help="With --from l2p: C for each computed step, F for each other."
        ),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            "--like",
            metavar="FILE",
            help="With --to sglang-dpcache: a schedule of SGLang's for the same request.",
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Read other tools' settings as a policy, or write a policy's schedule for them.

    With --from, FILE holds the fields of a diffusers cache config, cache-dit's YAML, SmoothCache's schedule, TeaCache's
    {"coefficients": [...], "threshold": 0.25}, SGLang's DPCache schedule, L2P's matrix or a mask such as 110010 (in
    which 1 means computed; cached with --from cached-mask), as JSON or YAML, and X is the policy file to write.

    With --to, FILE is a policy file and X the other tool's: `cache_dit.load_configs(X)`, the fields of
    `diffusers.TaylorSeerCacheConfig` or `MagCacheConfig`, SGLang's schedule or a mask. Only schedules that are settled
    before sampling, with reuse or Taylor forecasts, exist there; anything else is refused by name, never approximated
    in silence.

    Cost: none; no model is needed.

    Example: cachesmith convert examples/fashion_dit/fashion.policy.safetensors --to cache-dit --profile fast --order 1
    --out cache.yaml
    """
    if (source is None) == (target is None):
        raise CachesmithError(
            "say what FILE is: --from FORMAT to read another tool's settings, --to FORMAT to write them"
        )
    if source is not None:
        notes = _import(file, source, out, steps, mask, force)
    else:
        request = None if like is None else _settings(like)
        notes = _export(file, target or "", out, profile, steps, order, request, force)
    for each in notes:
        note(each)
    print_json({"file": str(out), "notes": list(notes)}) if json else say(f"saved {out}")


def _import(
    file: Path, source: str, out: Path, steps: int | None, mask: str | None, force: bool
) -> tuple[str, ...]:
    check_policy_file(out, force)
    converted = import_settings(_settings(file), source, steps, mask)
    out.parent.mkdir(parents=True, exist_ok=True)
    save(converted.policy, out)
    return converted.notes


def _settings(file: Path) -> Any:
    try:
        return read_settings(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise CachesmithError(f"{file} is no text file; give the settings as JSON or YAML") from None


def _export(
    file: Path,
    target: str,
    out: Path,
    profile: str | None,
    steps: int | None,
    order: int | None,
    request: object,
    force: bool,
) -> tuple[str, ...]:
    check_file(out, "--out", force)
    values, notes = export_profile(load(file), target, profile, steps, order, request)
    write_text(out, write_settings(values, TARGETS[target][1], notes))
    return notes
