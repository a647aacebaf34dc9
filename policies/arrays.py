"""Checks of single arrays, and of the arrays of one forecaster against each other."""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachesmith.policies.base import Arrays
from cachesmith.policies.errors import PolicyError
from cachesmith.policies.file.tensor_entry import MAX_AXIS
from cachesmith.policies.forecaster import Clusters, Fitted, Forecaster
from cachesmith.policies.references import FORMS, Reference

Array = NDArray[Any]

Spans = Mapping[str, tuple[int, int]]
"""Lowest and highest value of every array of cluster ids."""

NO_CHANNEL = -1
"""Stands behind the ids of a lane with fewer channels than others."""

ORTHONORMAL = 1e-3
"""Largest allowed entry of (V^T V - 1) x, for x of ones and minus ones."""
_PROBES = 8
"""How many such x are tried. One entry that is off shows with any of them; all of V^T V would cost hours."""


def check_array(reference: Reference, array: Array) -> None:
    """Raise `PolicyError` unless the array has the dtype, axes and values its kind asks for."""
    said = f"{reference.field}: the array {reference.name!r}"
    dtype, axes = FORMS[reference.kind]
    if array.dtype != np.dtype(dtype):
        raise PolicyError(f"{said} has dtype {array.dtype}, expected {dtype}; convert it")
    if array.ndim != len(axes) or 0 in array.shape:
        raise PolicyError(
            f"{said} has shape {array.shape}, expected [{', '.join(axes)}], none of them 0; reshape it"
        )
    if max(array.shape) > MAX_AXIS:
        raise PolicyError(
            f"{said} has shape {array.shape}, the limit along an axis is {MAX_AXIS:,}; calibrate again"
        )
    if not np.isfinite(array).all():
        raise PolicyError(f"{said} holds NaN or infinite values; every value must be finite: calibrate again")
    if reference.kind == "scales" and array.min() < 0:
        raise PolicyError(
            f"{said} holds {array.min()}; a scale is a ratio of norms, at least 0: calibrate again"
        )
    if reference.kind == "basis":
        _check_basis(said, array)


def id_spans(mentioned: Iterable[Reference], arrays: Arrays) -> Spans:
    """Measure every array of cluster ids once, however many forecasters name it."""
    ids = {reference.name for reference in mentioned if reference.kind == "ids"}
    return {name: _span(arrays[name]) for name in ids}


def lane_ids(ids: Array) -> Array:
    """One lane's entries: those of a lane with fewer channels than others end in -1."""
    return ids[: 1 + int(np.flatnonzero(ids != NO_CHANNEL).max(initial=-1))]


def _span(ids: Array) -> tuple[int, int]:
    """Lowest and highest entry; -1 is one where another entry comes after it, or none before."""
    if (least := int(ids.min())) != NO_CHANNEL:
        return least, int(ids.max())
    lanes = [lane_ids(lane) for lane in ids]
    return min(int(lane.min(initial=0 if len(lane) else NO_CHANNEL)) for lane in lanes), int(ids.max())


def check_forecaster(
    field: str, forecaster: Forecaster, steps: int | None, arrays: Arrays, spans: Spans
) -> None:
    """Raise `PolicyError` unless the arrays of one forecaster fit each other and the number of steps."""
    match forecaster.rows:
        case Fitted():
            _check_fitted(f"{field}.rows", forecaster.rows, steps, arrays, spans)
        case Clusters(ids=name, rows=rows):
            _check_ids(f"{field}.rows.ids", spans[name], len(rows))
    if forecaster.correction is not None:
        rows_stored = arrays[forecaster.correction.offsets].shape[1]
        _check_steps(f"{field}.correction.offsets", rows_stored, rows_stored if steps is None else steps)
    _check_channels(field, forecaster, arrays)


def _check_basis(said: str, basis: Array) -> None:
    channels, rank = basis.shape[1:]
    if rank > channels:
        raise PolicyError(f"{said} has rank {rank} for {channels} channels; use a rank of at most {channels}")
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (rank, min(_PROBES, rank)))
    for lane in basis:
        with np.errstate(all="ignore"):
            off = np.abs(lane.T @ (lane @ signs) - signs).max()
        # written so that NaN, from an overflow, is refused as well
        if not off <= ORTHONORMAL:
            break
    if not off <= ORTHONORMAL:
        raise PolicyError(
            f"{said} is off orthonormal by {off:.2g}, the limit is {ORTHONORMAL}; orthonormalise columns"
        )


def _check_fitted(field: str, fitted: Fitted, steps: int | None, arrays: Arrays, spans: Spans) -> None:
    _, rows, taps, *groups = arrays[fitted.weights].shape
    steps = rows if steps is None else steps
    _check_steps(f"{field}.weights", rows, steps)
    if fitted.ids is not None:
        _check_ids(f"{field}.ids", spans[fitted.ids], *groups)
    if fitted.input_weights is None:
        return
    _, rows, input_taps, *input_groups = arrays[fitted.input_weights].shape
    _check_steps(f"{field}.input_weights", rows, steps)
    if input_groups != groups:
        raise PolicyError(
            f"{field}.input_weights has {input_groups[0]} groups and weights has {groups[0]}; "
            "both need one entry per group"
        )
    if input_taps != taps + 1:
        raise PolicyError(
            f"{field}.input_weights has {input_taps} taps, expected {taps + 1}: "
            "those of weights, and one for the input now"
        )


def _check_steps(field: str, rows: int, steps: int) -> None:
    if rows != steps:
        raise PolicyError(f"{field} has rows for {rows} steps, expected {steps}; store one row per step")


def _check_ids(field: str, span: tuple[int, int], clusters: int) -> None:
    low, high = span
    if low < 0 or high >= clusters:
        raise PolicyError(f"{field} holds {low} to {high} for {clusters} clusters; use 0 to {clusters - 1}")


def _check_channels(field: str, forecaster: Forecaster, arrays: Arrays) -> None:
    rows, subspace, correction = forecaster.rows, forecaster.subspace, forecaster.correction
    ids = rows.ids if isinstance(rows, Clusters | Fitted) else None
    counts = {
        "cluster ids": None if ids is None else arrays[ids].shape[1],
        "a basis": None if subspace is None else arrays[subspace.basis].shape[1],
        "a correction": None if correction is None else arrays[correction.offsets].shape[2],
    }
    known = [(what, count) for what, count in counts.items() if count is not None]
    for (one, low), (other, high) in pairwise(known):
        if low != high:
            raise PolicyError(
                f"{field} has {one} for {low} channels and {other} for {high}; "
                "both need one entry per channel"
            )
