"""`cachesmith export`: compile what a policy computes as wholes to engines."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cachesmith.commands import options
from cachesmith.commands.failure import need
from cachesmith.commands.output import print_json, results, say
from cachesmith.commands.pipeline import arguments, negative_of, open_pipeline, require_requests, sampling
from cachesmith.commands.shared import completion
from cachesmith.commands.shared.destination import check_folder
from cachesmith.policies import Policy, load
from cachesmith.policies.bundle.manifest import MANIFEST, Range, bundle_id
from cachesmith.progress import bars

if TYPE_CHECKING:
    from cachesmith.export import ExportConfig, Exported
    from cachesmith.sampling.requests import Prompt


class ExportTarget(StrEnum):
    """What runs the engines."""

    onnxruntime = "onnxruntime"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


RUNTIMES = {"onnxruntime": ("onnxruntime",), "tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx",)}
"""Modules that each target needs."""


def extent(text: str) -> Range:
    """Read `4`, `1:4` or `1:2:4` as least, best and largest extent."""
    try:
        numbers = [int(part) for part in text.split(":")]
        low, *middle, high = numbers if len(numbers) > 1 else numbers * 2
        return Range(min=low, opt=middle[0] if middle else high, max=high)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no range; write MIN:MAX or MIN:BEST:MAX, ascending from 1"
        ) from None


def export(
    model: options.Model,
    policy: options.PolicyFile,
    out: Annotated[Path, typer.Option("--out", metavar="BUNDLE", help="Folder of the bundle.")],
    target: Annotated[
        ExportTarget | None,
        typer.Option("--target", show_default="tensorrt where it is installed, else onnxruntime"),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            "--profile",
            metavar="P",
            help="Serve only this profile; may be repeated.",
            autocompletion=completion.profiles,
        ),
    ] = None,
    segments: Annotated[
        int | None, typer.Option("--segments", min=1, help="Number of engines.", show_default="the fewest")
    ] = None,
    blockwise: Annotated[
        bool, typer.Option("--blockwise", help="Export a policy that caches modules, one small engine each.")
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE", help="Requests to record, as for calibrate.", show_default="one"
        ),
    ] = None,
    pictures: Annotated[
        Any,
        typer.Option(
            "--pictures",
            parser=extent,
            metavar="MIN:BEST:MAX",
            help="Pictures of a batch.",
            show_default="1:1:4",
        ),
    ] = None,
    tokens: Annotated[
        Any,
        typer.Option(
            "--tokens",
            parser=extent,
            metavar="MIN:BEST:MAX",
            help="Picture tokens.",
            show_default="as recorded",
        ),
    ] = None,
    steps: options.StepsOption = None,
    *,
    calls: options.Sampling,
    opset: Annotated[
        int | None, typer.Option("--opset", min=18, help="ONNX opset.", show_default="20")
    ] = None,
    level: Annotated[int, typer.Option("--level", min=0, max=5, help="Builder optimisation level.")] = 3,
    flag: Annotated[
        list[str] | None,
        typer.Option("--flag", metavar="NAME", help="TensorRT BuilderFlag; may be repeated."),
    ] = None,
    hardware: Annotated[
        str, typer.Option("--hardware", metavar="NAME", help="TensorRT HardwareCompatibilityLevel.")
    ] = "NONE",
    capability: Annotated[
        str | None,
        typer.Option("--compute-capability", metavar="8.9,12.0", help="GPUs tensorrt-rtx builds for."),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option("--timing-cache", metavar="FILE", help="TensorRT timings to reuse and extend."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be exported, and stop.")] = False,
    loading: options.Loading,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Renew a bundle that exists: what has not changed is kept.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Compile the parts of a model that a policy computes or skips as wholes, and prove them against the original.

    The bundle holds ONNX graphs, engines and a manifest with the hash of every file. Run it with `--bundle`. An export
    that was interrupted goes on; with --force, one that is there is renewed where it has changed.

    Cost: one uncached picture of each request; building engines takes minutes each, and every graph is run at every
    step.

    Example: cachesmith export examples/fashion_dit/model --policy examples/fashion_dit/fashion.policy.safetensors
    --target onnxruntime --out bundle
    """
    need("onnx", "onnxscript")
    check_folder(out, "--out", (MANIFEST,), force or dry_run)

    from cachesmith.export import BuildConfig, ExportConfig
    from cachesmith.export.config import OPSET, PICTURE_RANGE
    from cachesmith.sampling.requests import arguments_of, completed, requests

    loaded = load(policy, token=loading.token)
    for name in profile or ():
        loaded.profile(name)
    chosen = (target or _usual_target()).value
    need(*RUNTIMES[chosen])
    pipe = open_pipeline(model, loading, loaded, arguments(calls))
    visited, common = sampling(pipe, loaded, steps, calls)
    listed = completed(_prompts(pipe, prompts), negative_of(calls))
    made = requests(listed, len(listed), 0)
    require_requests(pipe, made, common, visited)
    config = ExportConfig(
        target=chosen,  # type: ignore[arg-type]
        profiles=tuple(profile or ()),
        segments=segments,
        blockwise=blockwise,
        requests=tuple({**common, **arguments_of([request])} for request in made),
        steps=visited,
        pictures=pictures or PICTURE_RANGE,
        tokens=tokens,
        opset=opset or OPSET,
        build=BuildConfig(
            level=level,
            flags=tuple(flag or ()),
            hardware=hardware,
            capabilities=tuple(capability.split(",")) if capability else (),
            timing_cache=timing_cache,
        ),
    )
    if dry_run:
        _plan(pipe, loaded, config, json)
        return
    _export(pipe, loaded, config, out, json)


def _usual_target() -> ExportTarget:
    import torch

    usable = find_spec("tensorrt") is not None and torch.cuda.is_available()
    return ExportTarget.tensorrt if usable else ExportTarget.onnxruntime


def _prompts(pipe: Any, file: Path | None) -> "Sequence[Prompt]":
    """Read the prompts, or make one that any pipeline of its kind takes."""
    import inspect

    from cachesmith.sampling.requests import read_prompts

    if file is not None:
        return read_prompts(file)
    labelled = "class_labels" in inspect.signature(pipe.__call__).parameters
    return [{"class_labels": 0} if labelled else "a photograph"]


def _plan(pipe: Any, policy: Policy, config: "ExportConfig", json: bool) -> None:
    from cachesmith.export import parts_of
    from cachesmith.export.parts import describe_parts

    parts = parts_of(pipe, policy, config)
    if json:
        print_json([{"name": p.name, "blocks": [p.start, p.stop], "weights": p.weights} for p in parts])
        return
    table = Table("engine", "blocks", "weights", box=None)
    for part in parts:
        table.add_row(part.name, f"{part.start} to {part.stop - 1}", f"{part.weights / 2**20:.1f} MiB")
    results().print(table)
    say(f"{describe_parts(parts)}, for {config.target}; nothing was written")


def _export(pipe: Any, policy: Policy, config: "ExportConfig", out: Path, json: bool) -> None:
    from cachesmith.export import export_bundle

    with _reporting() as report:
        done = export_bundle(pipe, policy, out, config, report)
    if json:
        print_json({"id": bundle_id(done.manifest), "graphs": done.graphs, "engines": done.engines,
                    "manifest": done.manifest.model_dump(mode="json")})  # fmt: skip
        return
    results().print(parity_table(done))
    size = sum(f.size for s in done.manifest.segments for f in s.files) / 2**20
    say(
        f"{out}: {len(done.manifest.segments)} segments for {config.target}, {size:.1f} MiB; made "
        f"{done.graphs} graphs and {done.engines} engines, the rest was up to date"
    )


def parity_table(done: "Exported") -> Table:
    """Every segment's largest difference from torch over the recorded steps."""
    table = Table(
        "segment", "inputs compared", "relative error", "at step", "allowed", "largest difference", box=None
    )
    for segment in done.manifest.segments:
        if (found := segment.parity) is not None:
            table.add_row(
                segment.name, str(found.steps), f"{found.error:.1e}", str(found.worst), f"{found.tolerance:.0e}",
                f"{found.max_abs:.1e}",
            )  # fmt: skip
    return table


@contextmanager
def _reporting() -> Iterator[Callable[[str, int, int], None]]:
    """One bar that follows whatever is being done."""
    with bars() as display:
        task = display.add_task("preparing", total=None, note="")
        yield lambda phase, done, total: display.update(
            task, description=phase, completed=done, total=total or None
        )
