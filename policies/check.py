"""Checks across fields, and between a document and its arrays, that the schema alone cannot express."""

from cachesmith.policies.arrays import Spans, check_array, check_forecaster, id_spans
from cachesmith.policies.base import MAIN, Arrays
from cachesmith.policies.document import Document, SamplerKey
from cachesmith.policies.errors import PolicyError
from cachesmith.policies.gate import Fixed, StaticGate
from cachesmith.policies.profile import Profile, Sampled, has_fitted
from cachesmith.policies.references import denoisers_in, forecasters, mentions, references
from cachesmith.policies.units import Modules, Segments

MAX_BYTES = 2**30
"""Of all arrays together: what a reader is willing to hold in memory."""


def check_document(document: Document, arrays: Arrays) -> None:
    """Raise `PolicyError` unless the document is consistent and the arrays are exactly those it names."""
    if document.sampler is not None:
        _check_sampler(document.sampler)
    _check_names(document, arrays)
    _check_size(arrays)
    spans = _check_content(document, arrays)
    for name, profile in document.profiles.items():
        _check_denoisers(name, profile, document)
        _check_steps_of_denoisers(name, profile)
        keys = (document.model, *(document.models.get(further) for further in profile.denoisers))
        for (path, sampled), key in zip(denoisers_in(name, profile), keys, strict=True):
            _check_units(path, sampled, None if key is None else key.blocks)
            steps = _check_masks(path, sampled, document.sampler)
            _check_follower(path, sampled)
            _check_lanes(path, sampled, arrays)
            _check_forecasters(path, sampled, steps, arrays, spans)


def _check_forecasters(path: str, sampled: Sampled, steps: int | None, arrays: Arrays, spans: Spans) -> None:
    for field, forecaster in forecasters(path, sampled):
        check_forecaster(field, forecaster, steps, arrays, spans)
        if forecaster.refresh is not None and not isinstance(sampled.units, Modules):
            raise PolicyError(
                f"{field}.refresh computes single tokens, but {path}.units is {sampled.units.kind!r}; "
                "use the units `module`"
            )


def _check_denoisers(name: str, profile: Profile, document: Document) -> None:
    """Every profile is for the same denoisers; a policy that is bound to models, for those."""
    told, known = set(profile.denoisers), set(document.models)
    if MAIN in told | known:
        raise PolicyError(
            f"{MAIN!r} is the main denoiser, which `model` and the profile itself are about; take it out of "
            "`models` and `denoisers`"
        )
    if document.model is None and known:
        raise PolicyError("`models` binds further denoisers, but `model` binds no first one; give both")
    others = {f"profiles.{other}.denoisers": set(p.denoisers) for other, p in document.profiles.items()}
    others |= {"models": known} if document.model is not None else {}
    for field, names in others.items():
        if names != told:
            raise PolicyError(
                f"profiles.{name}.denoisers has {', '.join(sorted(told)) or 'none'} and {field} has "
                f"{', '.join(sorted(names)) or 'none'}; give both the same"
            )


def _check_steps_of_denoisers(name: str, profile: Profile) -> None:
    """Masks of several denoisers are over one run, and weights that were fitted say for which of its steps."""
    for path, sampled in denoisers_in(name, profile) if profile.denoisers else ():
        if has_fitted(sampled) and not isinstance(sampled.gate, Fixed):
            raise PolicyError(
                f"{path} has weights that were fitted for the steps of one of several denoisers, but the gate "
                f"{sampled.gate.kind!r} does not say which these are; use the gate `fixed`"
            )
    masks = {len(e.gate.mask) for _, e in denoisers_in(name, profile) if isinstance(e.gate, Fixed)}
    if len(masks) > 1:
        raise PolicyError(
            f"the masks of profiles.{name} and its denoisers have {min(masks)} and {max(masks)} letters; give each one "
            "letter per step of the whole run"
        )


def _check_sampler(sampler: SamplerKey) -> None:
    if len(sampler.sigmas) != sampler.steps:
        raise PolicyError(
            f"sampler.sigmas has {len(sampler.sigmas)} values but sampler.steps is {sampler.steps}; "
            "store one noise level per step"
        )


def _check_names(document: Document, arrays: Arrays) -> None:
    named = {reference.name: reference.field for reference in references(document)}
    for name, field in named.items():
        if name not in arrays:
            raise PolicyError(
                f"{field} names the array {name!r}, which is not stored; add it or change the field"
            )
    unused = sorted(set(arrays) - set(named))
    if unused:
        raise PolicyError(
            f"the array {unused[0]!r} is stored but no field names it; remove it or name it in a profile"
        )


def _check_size(arrays: Arrays) -> None:
    total = sum(array.nbytes for array in arrays.values())
    if total > MAX_BYTES:
        raise PolicyError(
            f"the arrays take {total:,} bytes, the limit is {MAX_BYTES:,}; lower rank, taps or time bins"
        )


def _check_content(document: Document, arrays: Arrays) -> Spans:
    """Read every array once for each kind it is named as, however often an untrusted file names it."""
    mentioned = {(found.kind, found.name): found for found in references(document)}.values()
    for reference in mentioned:
        check_array(reference, arrays[reference.name])
    return id_spans(mentioned, arrays)


def _check_units(path: str, sampled: Sampled, blocks: int | None) -> None:
    if blocks is None or not isinstance(sampled.units, Segments):
        return
    last = max(sampled.units.starts)
    if last >= blocks:
        raise PolicyError(
            f"{path}.units.starts ends with block {last} but the model has {blocks} blocks; "
            f"use starts below {blocks}"
        )
    sampled.units.resolved(blocks)


def _check_masks(path: str, sampled: Sampled, sampler: SamplerKey | None) -> int | None:
    """Return the number of steps the profile is bound to, if any."""
    steps = None if sampler is None else sampler.steps
    if not isinstance(sampled.gate, Fixed):
        return steps
    steps = len(sampled.gate.mask) if steps is None else steps
    masks = {"mask": sampled.gate.mask} | {f"groups.{group}": m for group, m in sampled.gate.groups.items()}
    for field, mask in masks.items():
        if len(mask) != steps:
            raise PolicyError(
                f"{path}.gate.{field} has {len(mask)} letters for {steps} steps; give one letter per step"
            )
    return steps


def _check_follower(path: str, sampled: Sampled) -> None:
    """Steps that are computed by half, and the half that follows, come together and are settled beforehand."""
    follower = sampled.units.follower
    if follower is None and isinstance(sampled.gate, Fixed) and "H" in sampled.gate.mask:
        raise PolicyError(
            f"{path}.gate.mask computes half of guidance at some steps, but no half follows the other; "
            "say which one does in units.follower, or replace H"
        )
    if follower is not None and not isinstance(sampled.gate, StaticGate):
        raise PolicyError(
            f"{path}.units has a follower, but the gate {sampled.gate.kind!r} decides while sampling; "
            "use the gate `fixed` or `interval`, or leave the follower out"
        )


def _check_lanes(path: str, sampled: Sampled, arrays: Arrays) -> None:
    """Lanes are counted over all units of a profile, so its arrays have the same number of them."""
    fields = [m for field, forecaster in forecasters(path, sampled) for m in mentions(field, forecaster)]
    counts = {m.field: arrays[m.name].shape[0] for m in fields}
    if len(set(counts.values())) > 1:
        low, high = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        raise PolicyError(
            f"{low} has {counts[low]} lanes and {high} has {counts[high]}; "
            "all arrays of a profile need the same number"
        )
    units = len(sampled.units.starts) if isinstance(sampled.units, Segments) else 1
    # segments may differ in streams: only the picture's leave the last one
    if counts and max(counts.values()) < units:
        raise PolicyError(
            f"the arrays of {path} have {max(counts.values())} lanes for {units} segments; "
            "store at least one lane per segment"
        )
