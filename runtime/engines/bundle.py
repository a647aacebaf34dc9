"""A bundle at run time: loaded once, bound to a transformer, asked for each unit that is to be computed."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cachesmith.policies import MAIN, EngineError, ModelKey
from cachesmith.policies.bundle.manifest import Manifest, SegmentEntry, read_manifest
from cachesmith.runtime.engines.backends import opener
from cachesmith.runtime.engines.drop_weights import drop_weights, present_key
from cachesmith.runtime.engines.segment_call import LoadOptions, SegmentCall, mismatch
from cachesmith.runtime.features import Feature
from cachesmith.runtime.models.engine_segment import constants, real, tensors
from cachesmith.runtime.models.fingerprint import lora_names
from cachesmith.runtime.models.snapshot import Network, look
from cachesmith.runtime.models.units import BlockRun, GuidanceDifference, NetworkUnit, Unit, block_lists
from cachesmith.runtime.models.weights import present_weights
from cachesmith.runtime.stats import Stats

Outside = Literal["error", "torch"]
"""What to do with inputs the engines were not exported for: raise `EngineError`, or compute in torch and warn."""


@dataclass(frozen=True, eq=False)
class Engines:
    """A verified bundle whose segments are loaded. Make one with `open_bundle`; reuse it from request to request."""

    folder: Path
    manifest: Manifest
    calls: Mapping[str, SegmentCall]
    device: torch.device
    outside: Outside = "error"

    def bind(
        self,
        transformer: nn.Module,
        present: ModelKey,
        units: tuple[NetworkUnit, ...],
        stats: Stats,
        denoiser: str = MAIN,
    ) -> "BoundEngines":
        """Check that the engines compute this transformer's units; raise `EngineError` when they do not.

        denoiser: which of the bundle's it is.
        """
        made, segments = self._model(denoiser), self.manifest.of(denoiser)
        _check_dtype(self.manifest, transformer)
        check_model(made, present)
        chains = {u.name: c for u in units if (c := _chain(segments, transformer, u)) is not None}
        runs = [unit for unit in units if isinstance(unit, BlockRun)]
        if not chains or any(unit.name not in chains for unit in runs):
            held = ", ".join(entry.name for entry in segments[:4])
            raise EngineError(
                f"the bundle {self.folder} has segments {held}{'…' * (len(segments) > 4)}, whose borders "
                f"do not make up the units {', '.join(u.name for u in units[:4])} of this profile; export this policy"
            )
        for unit in units:
            for entry in chains.get(unit.name, ()):
                _check_names(unit, entry)
        return BoundEngines(self, made, transformer, chains, stats, present)

    def _model(self, denoiser: str) -> ModelKey:
        if denoiser == MAIN:
            return self.manifest.model
        if denoiser not in self.manifest.models:
            raise EngineError(
                f"the bundle {self.folder} has no engines of {denoiser}, which follows the policy, too; export this "
                "policy"
            )
        return self.manifest.models[denoiser]


class BoundEngines:
    """Engines for the units of one transformer. What torch has to compute instead is counted in `stats.fallbacks`."""

    def __init__(
        self,
        engines: Engines,
        made: ModelKey,
        transformer: nn.Module,
        chains: Mapping[str, tuple[SegmentEntry, ...]],
        stats: Stats,
        present: ModelKey,
    ):
        self.engines, self.transformer, self.chains, self.stats = engines, transformer, chains, stats
        self._made, self._present, self._marks = made, present, look(transformer).marks

    def begin(self, network: Network) -> None:
        """A run begins: raise `EngineError` where the weights are no longer those that the engines compute with."""
        if network.marks != self._marks:
            changed = {
                "weights_hash": present_weights(self.transformer),
                "adapters": lora_names(self.transformer),
            }
            check_model(self._made, self._present.model_copy(update=changed))
            self._marks = network.marks

    def compute(self, unit: Unit, arguments: Mapping[str, Any]) -> Feature | None:
        """Compute `unit` from the named arguments of its first member; None when torch is to do it."""
        chain = self.chains.get(unit.name)
        if chain is None or isinstance(unit, GuidanceDifference):
            return None
        _check_adapters(self._made, lora_names(self.transformer))
        reason, values = self._inputs(unit, chain, arguments)
        if reason is not None:
            self._outside(reason)
            return None
        for entry in chain:
            outputs = self.engines.calls[entry.name]({spec.name: values[spec.name] for spec in entry.inputs})
            values.update(zip((output_stream(s.name) for s in entry.outputs), outputs, strict=True))
        return tuple(values[stream] for stream in unit.streams)

    def _inputs(
        self, unit: NetworkUnit, chain: tuple[SegmentEntry, ...], arguments: Mapping[str, Any]
    ) -> tuple[str | None, dict[str, Tensor]]:
        rest = {name: value for name, value in arguments.items() if name not in unit.reads[0]}
        values = {k: real(v) for name, value in rest.items() for k, v in tensors(name, value).items()}
        given = {k: v for name, value in rest.items() for k, v in constants(name, value).items()}
        why = _difference(unit, chain, set(values), given)
        if why is not None:
            return why, {}
        values |= {stream: arguments[stream] for stream in unit.reads[0]}
        reasons = (mismatch(entry, values, self.engines.device) for entry in chain)
        return next((r for r in reasons if r is not None), None), values

    def _outside(self, reason: str) -> None:
        if self.engines.outside == "error":
            raise EngineError(
                f"{reason}; export with a wider range, or let torch compute it: outside='torch' (--outside torch)"
            )
        told = f"torch computes what the engines cannot: {reason}"
        if not self.stats.fallbacks[told]:
            warnings.warn(told, RuntimeWarning, stacklevel=2)
        self.stats.fallbacks[told] += 1


def open_bundle(
    folder: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    *,
    backend: str | None = None,
    outside: Outside = "error",
    cuda_graphs: bool = False,
) -> Engines:
    """Load a bundle's segments. Every file that takes part is read once and verified, and those bytes are run.

    backend: by default the one the bundle was exported for; any bundle also runs in `onnxruntime`. A bundle that is
    renewed meanwhile is the old one or the new one.
    Raises `EngineError` when a file is not the exported one, or this machine cannot run it.
    """
    path, place = Path(folder), _place(device)
    manifest = read_manifest(path)
    while True:
        try:
            return _load(path, manifest, place, backend, outside, cuda_graphs)
        except EngineError:
            before, manifest = manifest, read_manifest(path)
            if manifest == before:
                raise


def _load(
    path: Path,
    manifest: Manifest,
    place: torch.device,
    backend: str | None,
    outside: Outside,
    cuda_graphs: bool,
) -> Engines:
    name = backend or manifest.target
    load = opener(name, manifest, cuda_graphs)
    return Engines(path, manifest, load(path, manifest, LoadOptions(place, cuda_graphs)), place, outside)


def bind_engines(
    bundle: Engines | str | os.PathLike[str],
    transformer: nn.Module,
    pipe: Any,
    units: tuple[NetworkUnit, ...],
    drop: bool,
    stats: Stats,
    denoiser: str = MAIN,
) -> BoundEngines:
    """Load the bundle unless it is loaded, check that it fits, and free the modules' weights if asked to."""
    place = next(transformer.parameters()).device
    engines = bundle if isinstance(bundle, Engines) else open_bundle(bundle, place)
    present = present_key(transformer, pipe)
    bound = engines.bind(transformer, present, units, stats, denoiser)
    if drop:
        if engines.outside == "torch":
            raise EngineError(
                "dropped weights leave torch nothing to compute with; open the bundle with outside='error'"
            )
        drop_weights(transformer, (m for u in units if u.name in bound.chains for m in u.members), present)
    return bound


def check_model(made: ModelKey, present: ModelKey) -> None:
    """Raise `EngineError` when the engines were made from another model than the one that is loaded."""
    if (made.transformer, made.config_hash) != (present.transformer, present.config_hash):
        raise EngineError(
            f"the engines compute a {made.transformer} ({made.config_hash[:12]}…), this is a {present.transformer} "
            f"({present.config_hash[:12]}…); export this model"
        )
    if made.blocks != present.blocks:
        raise EngineError(
            f"the engines compute a model of {made.blocks} blocks, this one has {present.blocks}; export this model"
        )
    _check_adapters(made, present.adapters)
    if made.weights_hash != present.weights_hash:
        raise EngineError(
            f"the weights differ from those in the engines ({str(present.weights_hash)[:12]}… is not "
            f"{str(made.weights_hash)[:12]}…), as after fuse_lora(); export this model, or run without the bundle"
        )


def _check_dtype(manifest: Manifest, transformer: nn.Module) -> None:
    found = str(next(transformer.parameters()).dtype).removeprefix("torch.")
    if found != manifest.dtype:
        raise EngineError(
            f"the engines compute in {manifest.dtype}, the transformer's parameters are {found}; load the pipeline in "
            f"{manifest.dtype}, or export it in {found}"
        )


def _place(device: torch.device | str) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError:
        raise EngineError(f"{str(device)[:40]!r} is no device of torch; use cpu or cuda") from None
    if place.type not in ("cpu", "cuda"):
        raise EngineError(f"engines run on cpu or cuda, not on {place}; move the pipeline there")
    if place.type == "cpu":
        return place
    if not torch.cuda.is_available():
        raise EngineError(
            "torch finds no CUDA device here; install torch for CUDA, or open the bundle on the cpu"
        )
    return place if place.index is not None else torch.device("cuda", torch.cuda.current_device())


def output_stream(name: str) -> str:
    """The stream an output tensor carries on."""
    return name.removesuffix("_out")


def _check_adapters(made: ModelKey, adapters: tuple[str, ...]) -> None:
    if adapters != made.adapters:
        raise EngineError(
            f"LoRA {', '.join(adapters) or 'none'} is loaded, but the engines were compiled with "
            f"{', '.join(made.adapters) or 'none'} and would ignore it; fuse it (pipe.fuse_lora(); "
            "pipe.unload_lora_weights()) and export again, or run without the bundle"
        )


def _chain(
    segments: tuple[SegmentEntry, ...], transformer: nn.Module, unit: NetworkUnit
) -> tuple[SegmentEntry, ...] | None:
    """The segments that make up a unit, in order."""
    blocks = [block for _, block in block_lists(transformer)]
    if not isinstance(unit, BlockRun):
        return _module_entry(segments, blocks, unit)
    start = next(i for i, block in enumerate(blocks) if block is unit.members[0])
    place, stop, chain = start, start + len(unit.members), []
    by_start = {entry.start: entry for entry in segments if entry.module is None}
    while place < stop and place in by_start:
        chain.append(by_start[place])
        place = by_start[place].stop
    return tuple(chain) if place == stop else None


def _check_names(unit: NetworkUnit, entry: SegmentEntry) -> None:
    """The segment makes all that the unit returns."""
    missing = set(unit.streams) - {output_stream(spec.name) for spec in entry.outputs}
    if missing:
        raise EngineError(
            f"segment {entry.name} cannot compute {unit.name}: it does not make {min(missing)}; export this policy"
        )


def _difference(
    unit: NetworkUnit, chain: tuple[SegmentEntry, ...], values: set[str], given: Mapping[str, Any]
) -> str | None:
    """Say in which argument beside the streams a call differs from those that were exported, if it does."""
    made = {output_stream(spec.name) for entry in chain for spec in entry.outputs}
    wanted = {spec.name for entry in chain for spec in entry.inputs} - {*unit.reads[0], *made}
    exported = {name: value for entry in chain for name, value in entry.constants.items()}
    for name in sorted(values ^ wanted | {n for n in {*given, *exported} if given.get(n) != exported.get(n)}):
        if name in wanted:
            return f"{unit.name} is not given `{name}`, which the engines need"
        if name in exported:
            return f"{unit.name} is given `{name}` = {given.get(name)}, exported with {exported[name]}"
        return f"{unit.name} is given `{name}`, which was not exported"
    return None


def _module_entry(
    segments: tuple[SegmentEntry, ...], blocks: list[nn.Module], unit: NetworkUnit
) -> tuple[SegmentEntry, ...] | None:
    for entry in segments:
        if entry.module is not None and _submodule(blocks[entry.start], entry.module) is unit.members[0]:
            return (entry,) if len(unit.members) == 1 else None
    return None


def _submodule(block: nn.Module, path: str) -> nn.Module | None:
    try:
        return block.get_submodule(path)
    except AttributeError:
        return None
