"""`export_bundle`: from a pipeline and a policy to a folder of engines."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cachesmith import __version__
from cachesmith.export.build_engine import build_engine
from cachesmith.export.bundle_writer import finished, keep, publish, take_file, workshop
from cachesmith.export.config import TOLERANCE, ExportConfig, Report
from cachesmith.export.digest import engine_digest
from cachesmith.export.job import (
    Job,
    halved,
    make_job,
    manifest_of,
    part_key,
    parts_of,
    record_parts,
    sample_requests,
)
from cachesmith.export.parity import ParityRow, judge
from cachesmith.export.parts import Part, part_unit
from cachesmith.export.prove import prove
from cachesmith.export.record import PartCall, check_shared, interface_of
from cachesmith.export.shapes import axis_ranges, specs
from cachesmith.export.to_onnx import describe_model, require_onnx, write_onnx
from cachesmith.policies import Policy, resolve_policy
from cachesmith.policies.bundle.files import describe_file
from cachesmith.policies.bundle.manifest import Manifest, SegmentEntry
from cachesmith.runtime.discovery.first_run import find_blocks
from cachesmith.runtime.engines.onnxruntime_backend import onnxruntime_module


@dataclass(frozen=True)
class Exported:
    """The bundle's manifest; parity rows of every new graph; how many graphs and engines were made, not reused."""

    manifest: Manifest
    rows: dict[str, list[ParityRow]]
    graphs: int
    engines: int


def export_bundle(
    pipe: Any,
    policy: Policy | str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: ExportConfig | None = None,
    report: Report = lambda *_: None,
) -> Exported:
    """Export what `policy` computes as wholes of the pipeline's denoisers, prove it against torch, and build engines.

    policy: a policy, or what names one, as for `apply`.
    Samples `config.requests` once, unless every graph is there already. What is finished is kept: after an export that
    ended early, however it did, the same one goes on. An older bundle in `out` stays valid until the new one is whole.
    Raises `EngineError`, also when another export writes there, or the disk is full.
    """
    require_onnx()
    onnxruntime_module()
    config = config or ExportConfig()
    policy = resolve_policy(policy)
    find_blocks(pipe, partial(sample_requests, pipe, policy, config, report))
    parts, job, folder = parts_of(pipe, policy, config), make_job(pipe, policy, config), Path(out)
    with workshop(folder) as work:
        keys = {part.name: part_key(job, part) for part in parts}
        older = finished(folder, keys.values())
        fresh = tuple(p for p in parts if keys[p.name] not in older)
        samples, rows = record_parts(job, fresh, report), {}
        entries = {part.name: older[keys[part.name]] for part in parts if part not in fresh}
        for place, part in enumerate(fresh):
            report(f"exporting {part.name}", place, len(fresh))
            entry, rows[part.name] = _graph(job, part, keys[part.name], samples.pop(part.name), work)
            entries[part.name] = keep(folder, work, _named(job, entry, work, work))
        made = tuple(keep(folder, work, _named(job, entries[part.name], folder, work)) for part in parts)
        built = tuple(keep(folder, work, _engine(job, entry, folder, work, report)) for entry in made)
        manifest = manifest_of(job, built)
        publish(folder, work, manifest)
    report("done", 1, 1)
    engines = sum(a.engine is not None and a.engine != b.engine for a, b in zip(built, made, strict=True))
    return Exported(manifest, rows, len(fresh), engines)


def _graph(
    job: Job, part: Part, key: str, samples: list[PartCall], work: Path
) -> tuple[SegmentEntry, list[ParityRow]]:
    """Write the part's graph and prove it against its samples."""
    module = job.module(part)
    face = interface_of(module, part, samples)
    check_shared(part, face)
    specs(face, samples[0])  # refuses what no engine takes, before anything is written
    path = work / f"{part.name}-{key[:12]}.onnx"
    face = write_onnx(part_unit(module, part).members, face, samples, path, job.config.opset)
    inputs, outputs = specs(face, samples[0])
    entry = SegmentEntry(
        name=part.name,
        denoiser=part.denoiser,
        start=part.start,
        stop=part.stop,
        module=part.module,
        inputs=inputs,
        outputs=outputs,
        ranges=axis_ranges(
            face, inputs, samples, job.config, halved(job.denoisers[part.denoiser].policy, job.config)
        ),
        key=key,
        onnx=describe_file(path),
        data=take_file(work, f"{path.name}.data"),
        constants=face.constants,
    )
    if not job.config.prove:
        return entry, []
    rows = prove(entry, samples, work)
    return entry.model_copy(update={"parity": judge(part.name, rows, TOLERANCE[job.dtype])}), rows


def _named(job: Job, entry: SegmentEntry, folder: Path, work: Path) -> SegmentEntry:
    """Give the graph in `folder` this policy's metadata and a name of its own: no file changes under its name."""
    name = f"{entry.name}-{entry.key[:12]}-{job.policy.id[:8]}.onnx"
    if entry.onnx.name == name:
        return entry
    about = {
        "cachesmith.policy": job.policy.id,
        "cachesmith.blocks": f"{entry.start}:{entry.stop}" + (f":{entry.module}" if entry.module else ""),
        "cachesmith.version": __version__,
    }
    describe_model(folder / entry.onnx.name, work / name, about)
    return entry.model_copy(update={"onnx": describe_file(work / name)})


def _engine(job: Job, entry: SegmentEntry, folder: Path, work: Path, report: Report) -> SegmentEntry:
    """Build the segment's engine, unless the one it has depends on nothing that changed."""
    if job.build is None:
        return entry.model_copy(update={"engine": None, "engine_key": None})
    key = engine_digest(entry.key, entry.ranges, job.config.target, job.build)
    if entry.engine is not None and entry.engine_key == key:
        return entry
    report(f"building {entry.name}", 0, 1)
    plan = build_engine(
        entry, folder / entry.onnx.name, job.config.target, job.build, job.config.build, report
    )
    path = work / f"{entry.name}-{key[:12]}.engine"
    path.write_bytes(plan)
    return entry.model_copy(update={"engine": describe_file(path), "engine_key": key})
