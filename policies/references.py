"""Where a document names the arrays stored beside it, and what each kind of array must look like."""

from collections.abc import Iterator
from dataclasses import dataclass

from cachesmith.policies.document import Document
from cachesmith.policies.forecaster import Calibrated, Clusters, Fitted, Forecaster, Mixed
from cachesmith.policies.profile import Profile, Sampled

FORMS = {
    "weights": ("float32", ("lanes", "steps", "taps")),
    "input_weights": ("float32", ("lanes", "steps", "taps")),
    "grouped_weights": ("float32", ("lanes", "steps", "taps", "groups")),
    "grouped_input_weights": ("float32", ("lanes", "steps", "taps", "groups")),
    "ids": ("int32", ("lanes", "channels")),
    "basis": ("float32", ("lanes", "channels", "rank")),
    "offsets": ("float32", ("lanes", "steps", "channels")),
    "scales": ("float32", ("lanes", "time bins")),
}
"""Kind of array: dtype and axes."""


@dataclass(frozen=True)
class Reference:
    """One mention of an array: the field that makes it, the kind expected there, the array's name."""

    field: str
    kind: str
    name: str


def references(document: Document) -> Iterator[Reference]:
    """Yield every mention of an array in the document."""
    for name, profile in document.profiles.items():
        for path, each in denoisers_in(name, profile):
            for field, forecaster in forecasters(path, each):
                yield from mentions(field, forecaster)


def denoisers_in(name: str, profile: Profile) -> Iterator[tuple[str, Sampled]]:
    """Yield the field path of what a profile says of every denoiser, the main one first."""
    yield f"profiles.{name}", profile
    for denoiser, further in profile.denoisers.items():
        yield f"profiles.{name}.denoisers.{denoiser}", further


def forecasters(path: str, sampled: Sampled) -> Iterator[tuple[str, Forecaster]]:
    """Yield the field path and value of every forecaster of one denoiser."""
    yield f"{path}.forecaster", sampled.forecaster
    for group, forecaster in sampled.overrides.items():
        yield f"{path}.overrides.{group}", forecaster


def mentions(field: str, forecaster: Forecaster) -> Iterator[Reference]:
    """Yield every mention of an array in one forecaster."""
    match forecaster.rows:
        case Fitted():
            yield from _fitted(f"{field}.rows", forecaster.rows)
        case Clusters(ids=ids):
            yield Reference(f"{field}.rows.ids", "ids", ids)
    if forecaster.subspace is not None:
        yield Reference(f"{field}.subspace.basis", "basis", forecaster.subspace.basis)
    if isinstance(forecaster.magnitude, Calibrated | Mixed):
        yield Reference(f"{field}.magnitude.scales", "scales", forecaster.magnitude.scales)
    if forecaster.correction is not None:
        yield Reference(f"{field}.correction.offsets", "offsets", forecaster.correction.offsets)


def _fitted(field: str, row: Fitted) -> Iterator[Reference]:
    grouped = "" if row.ids is None else "grouped_"
    yield Reference(f"{field}.weights", f"{grouped}weights", row.weights)
    if row.input_weights is not None:
        yield Reference(f"{field}.input_weights", f"{grouped}input_weights", row.input_weights)
    if row.ids is not None:
        yield Reference(f"{field}.ids", "ids", row.ids)
