"""What `cachesmith inspect BUNDLE` shows: the manifest, after every file was verified."""

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from cachesmith.commands.output import print_json, results
from cachesmith.policies.bundle.files import verify
from cachesmith.policies.bundle.manifest import Manifest, SegmentEntry, bundle_id, read_manifest


def inspect_bundle(folder: Path, json: bool) -> None:
    """Verify a bundle's files and print its manifest."""
    manifest = read_manifest(folder)
    verify(folder, manifest)
    if json:
        print_json({"id": bundle_id(manifest), "manifest": manifest.model_dump(mode="json")})
        return
    console = results()
    for name, value in _facts(manifest).items():
        console.print(Text(_printable(f"{name:<9} {value}")), soft_wrap=True)
    console.print()
    console.print(_segments(manifest))


def _facts(manifest: Manifest) -> dict[str, Any]:
    build = manifest.build
    count = sum(len(s.files) for s in manifest.segments)
    models = [f"{m.transformer}, {m.blocks} blocks" for m in (manifest.model, *manifest.models.values())]
    facts = {
        "bundle": f"{bundle_id(manifest)}, {count} files, all as exported",
        "policy": f"{manifest.policy_name} ({manifest.policy_id})",
        "model": ", ".join((*models, manifest.dtype)),
        "made with": ", ".join(f"{k} {v}" for k, v in manifest.versions.items())
        + f", opset {manifest.opset}",
        "target": manifest.target,
    }
    if build is not None:
        where = build.gpu or "compute capability " + ", ".join(build.capabilities)
        flags = ", ".join(build.flags) or "none"
        facts["target"] += f" {build.version} for {where}, level {build.level}, flags {flags}"
    return facts


def _segments(manifest: Manifest) -> Table:
    table = Table("segment", "inputs", "ranges", "size", "error", box=None)
    for s in manifest.segments:
        cells = (s.name, ", ".join(t.name for t in s.inputs), _ranges(s), _size(s), _error(s))
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _printable(text: str) -> str:
    """The model's names are free text from a file: no line breaks or terminal codes."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _ranges(segment: SegmentEntry) -> str:
    return ", ".join(f"{axis} {r.min}..{r.max}" for axis, r in segment.ranges.items())


def _size(segment: SegmentEntry) -> str:
    return f"{sum(f.size for f in segment.files) / 2**20:.1f} MiB"


def _error(segment: SegmentEntry) -> str:
    return "-" if segment.parity is None else f"{segment.parity.error:.1e}"
