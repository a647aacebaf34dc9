"""Checks across fields, and between a document and its arrays, that the schema alone cannot express."""

from cachesmith.policies.arrays import Spans, check_array, check_forecaster, id_spans
from cachesmith.policies.base import Arrays
from cachesmith.policies.document import Document, Profile, SamplerKey
from cachesmith.policies.errors import PolicyError
from cachesmith.policies.gate import Fixed, StaticGate
from cachesmith.policies.references import forecasters, mentions, references
from cachesmith.policies.units import Modules, Segments

MAX_BYTES = 2**30
"""Of all arrays together: what a reader is willing to hold in memory."""


def check(document: Document, arrays: Arrays) -> None:
    """Raise `PolicyError` unless the document is consistent and the arrays are exactly those it names."""
    if document.sampler is not None:
        _check_sampler(document.sampler)
    _check_names(document, arrays)
    _check_size(arrays)
    spans = _check_content(document, arrays)
    blocks = None if document.model is None else document.model.blocks
    for name, profile in document.profiles.items():
        _check_units(name, profile, blocks)
        steps = _check_masks(name, profile, document.sampler)
        _check_follower(name, profile)
        _check_lanes(name, profile, arrays)
        for field, forecaster in forecasters(name, profile):
            check_forecaster(field, forecaster, steps, arrays, spans)
            if forecaster.refresh is not None and not isinstance(profile.units, Modules):
                raise PolicyError(
                    f"{field}.refresh computes single tokens, but profiles.{name}.units is {profile.units.kind!r}; "
                    "use the units `module`"
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


def _check_units(name: str, profile: Profile, blocks: int | None) -> None:
    if blocks is None or not isinstance(profile.units, Segments):
        return
    last = max(profile.units.starts)
    if last >= blocks:
        raise PolicyError(
            f"profiles.{name}.units.starts ends with block {last} but the model has {blocks} blocks; "
            f"use starts below {blocks}"
        )
    profile.units.resolved(blocks)


def _check_masks(name: str, profile: Profile, sampler: SamplerKey | None) -> int | None:
    """Return the number of steps the profile is bound to, if any."""
    steps = None if sampler is None else sampler.steps
    if not isinstance(profile.gate, Fixed):
        return steps
    steps = len(profile.gate.mask) if steps is None else steps
    masks = {"mask": profile.gate.mask} | {f"groups.{group}": m for group, m in profile.gate.groups.items()}
    for field, mask in masks.items():
        if len(mask) != steps:
            raise PolicyError(
                f"profiles.{name}.gate.{field} has {len(mask)} letters for {steps} steps; "
                "give one letter per step"
            )
    return steps


def _check_follower(name: str, profile: Profile) -> None:
    """Steps that are computed by half, and the half that follows, come together and are settled beforehand."""
    follower = profile.units.follower
    if follower is None and isinstance(profile.gate, Fixed) and "H" in profile.gate.mask:
        raise PolicyError(
            f"profiles.{name}.gate.mask computes half of guidance at some steps, but no half follows the other; "
            "say which one does in units.follower, or replace H"
        )
    if follower is not None and not isinstance(profile.gate, StaticGate):
        raise PolicyError(
            f"profiles.{name}.units has a follower, but the gate {profile.gate.kind!r} decides while sampling; "
            "use the gate `fixed` or `interval`, or leave the follower out"
        )


def _check_lanes(name: str, profile: Profile, arrays: Arrays) -> None:
    """Lanes are counted over all units of a profile, so its arrays have the same number of them."""
    fields = [m for field, forecaster in forecasters(name, profile) for m in mentions(field, forecaster)]
    counts = {m.field: arrays[m.name].shape[0] for m in fields}
    if len(set(counts.values())) > 1:
        low, high = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        raise PolicyError(
            f"{low} has {counts[low]} lanes and {high} has {counts[high]}; "
            "all arrays of a profile need the same number"
        )
    units = len(profile.units.starts) if isinstance(profile.units, Segments) else 1
    # segments may differ in streams: only the picture's leave the last one
    if counts and max(counts.values()) < units:
        raise PolicyError(
            f"the arrays of profiles.{name} have {max(counts.values())} lanes for {units} segments; "
            "store at least one lane per segment"
        )
