"""A policy as tables."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from cachesmith.commands.output import results
from cachesmith.policies import (
    Calibration,
    Clusters,
    Distance,
    Document,
    Fixed,
    Forecaster,
    Interval,
    ModelKey,
    Policy,
    Probe,
    Relational,
    Sampled,
    Segments,
    Stack,
    mask,
)
from cachesmith.sampling.metrics import cells, headings, shown

_SIZES = 3
"""Sizes that are shown."""


def as_json(policy: Policy) -> dict[str, Any]:
    """Return the whole document, the policy's id, and the form of every array."""
    arrays = {
        name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in sorted(policy.arrays.items())
    }
    return {"id": policy.id, "arrays": arrays, "document": policy.document.model_dump(mode="json")}


def show(policy: Policy) -> None:
    """Print the policy for people."""
    console = results()
    console.print(_pairs(_origin(policy)))
    console.print()
    console.print(_profiles(policy.document))
    console.print()
    console.print(_pairs(_gates(policy.document)))
    if policy.document.calibration is not None:
        console.print()
        console.print(_pairs(_calibration(policy.document.calibration)))


def timeline(profile: Sampled, steps: int | None) -> Iterator[tuple[str, str]]:
    """Yield the gate as pairs of a unit group (empty: all) and a string of C, H and F, or the rule in words."""
    match profile.gate:
        case Fixed() as gate:
            yield "", gate.mask
            yield from gate.groups.items()
        case Interval() as gate if steps is not None:
            yield "", mask(gate, steps)
        case Interval() as gate:
            yield "", f"warm-up of {gate.warmup}, then every {gate.interval}th, last {gate.tail} computed"
        case Relational() as gate:
            limits = ", ".join(f"{t:g}" for t in gate.thresholds)
            yield (
                "",
                f"decides while sampling: error of the forecast input > {limits} (warm-up {gate.warmup})",
            )
        case Distance() as gate:
            yield (
                "",
                f"decides while sampling: change of the {gate.signal} signal adds up to {gate.threshold:g} "
                f"(warm-up {gate.warmup})",
            )
        case Probe() as gate:
            yield (
                "",
                f"decides while sampling: {gate.place} unit is {gate.threshold:g} or more away from its "
                f"{'last output' if gate.against == 'last' else 'forecast'} (warm-up {gate.warmup})",
            )


def _describe(forecaster: Forecaster) -> str:
    """Name a forecaster's parts, such as `taylor 2 + observed scale`."""
    row = forecaster.rows
    order = getattr(row, "order", None)
    name = f"{len(row.rows)} clusters" if isinstance(row, Clusters) else row.kind
    parts = [name if order is None else f"{name} {order}"]
    if forecaster.subspace is not None:
        parts.append("subspace")
    if forecaster.band is not None:
        parts.append(f"frequencies above {forecaster.band.cutoff:g}")
    if forecaster.magnitude is not None:
        parts.append(f"{forecaster.magnitude.kind} scale")
    if forecaster.correction is not None:
        parts.append("correction")
    if forecaster.refresh is not None:
        parts.append(f"{forecaster.refresh.kind} tokens")
    return " + ".join(parts)


def _origin(policy: Policy) -> Iterator[tuple[str, str]]:
    document = policy.document
    yield "policy", f"{document.name}  (id {policy.id}, format {document.format})"
    if document.model is None:
        yield "model", "any: bound to no model"
    else:
        yield from _model("model", document.model)
        for name, key in document.models.items():
            yield from _model(name, key)
    if document.sampler is not None:
        sampler = document.sampler
        said = (
            sampler.scheduler,
            f"{sampler.steps} steps",
            f"guidance {sampler.guidance}",
            *sampler.scales_in_words,
        )
        yield "sampler", ", ".join(said)
        if sampler.sizes:
            more = len(sampler.sizes) - _SIZES
            sizes = " or ".join(str(size) for size in sampler.sizes[:_SIZES])
            yield "size", f"{sizes}, and {more} more: --json" if more > 0 else sizes


def _model(name: str, key: ModelKey) -> Iterator[tuple[str, str]]:
    yield name, f"{key.transformer} of {key.pipeline or 'any pipeline'}, {key.blocks} blocks"
    yield "", f"configuration {key.config_hash[:12]}, weights {(key.weights_hash or 'not recorded')[:12]}"
    if key.adapters:
        yield "LoRA", ", ".join(key.adapters)


def _profiles(document: Document) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("profile", "units", "forecaster"):
        table.add_column(heading)
    metrics = shown([profile.quality for profile in document.profiles.values()])
    for heading in ("NFC", *headings(metrics), "steps / NFC"):
        table.add_column(heading, justify="right")
    for name, profile in document.profiles.items():
        figures = (_number(profile.nfc), *cells(profile.quality, metrics), _number(profile.speedup, "x"))
        table.add_row(name, _units(profile), _forecasters(profile), *figures)
        for further, own in profile.denoisers.items():
            table.add_row(f"  {further}", _units(own), _forecasters(own))
    return table


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.2f}{unit}"


def _units(profile: Sampled) -> str:
    match profile.units:
        case Segments(starts=starts):
            return f"{len(starts)} segments"
        case Stack(follower=str() as half):
            return f"stack; the {half} half follows" if half != "later" else "stack; later calls follow"
        case units:
            return units.kind


def _forecasters(profile: Sampled) -> str:
    own = (f"{group}: {_describe(forecaster)}" for group, forecaster in profile.overrides.items())
    return "; ".join((_describe(profile.forecaster), *own))


def _gates(document: Document) -> Iterator[tuple[str, str]]:
    steps = None if document.sampler is None else document.sampler.steps
    for name, profile in document.profiles.items():
        for group, letters in timeline(profile, steps):
            yield f"{name} {group}".strip(), letters
        for further, own in profile.denoisers.items():
            for group, letters in timeline(own, steps):
                yield f"{name} {further} {group}".strip(), letters


def _calibration(record: Calibration) -> Iterator[tuple[str, str]]:
    yield "fitted on", f"{record.fitting_size} samples, prompts {record.fitting_prompts[:12]}, {record.dtype}"
    yield "measured on", f"{record.heldout_size} held-out samples, prompts {record.heldout_prompts[:12]}"
    yield "study", f"{record.study}, {len(record.front)} trials on the front"
    yield "versions", ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items()))
    for fit in record.fits[:12]:
        yield f"fit {fit.lane}", f"scale {fit.scale:.3f}, spread {100 * fit.spread:.0f} %, r2 {fit.r2:.3f}"
    if len(record.fits) > 12:
        yield "", f"and {len(record.fits) - 12} more lanes: --json"


def _pairs(pairs: Iterator[tuple[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        # text from a file: no markup, no terminal codes
        table.add_row(*(Text("".join(c if c.isprintable() else "?" for c in part)) for part in (name, value)))
    return table
