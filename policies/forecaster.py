"""How a unit's output is estimated on a forecast step.

With `F0, F1, ...` the newest computed outputs (newest first), `I0` the input that belongs to `F0` and `I` the
input now, a forecaster is composed of these parts, all but the first optional and applied in this order:

    increment   D = sum_j w_j F_j - F0           `rows`: where the weights w come from
    subspace    D <- D V V^T                     `subspace`: across channels, the rest of F0 is reused
    band        D <- D - L D                     `band`: across tokens, the low frequencies of F0 are reused
    magnitude   D <- s |I - I0| D / |D|          `magnitude`: the length of the step is read off the input
    correction  F = F0 + D + c                   `correction`: the mean error of this step's forecast
    otherwise   F = F0 + D
    refresh     some tokens of F are computed    `refresh`: which ones, and what the others learn from them
"""

from typing import Annotated, Literal

from pydantic import Field

from cachesmith.policies.base import Frozen, Grown, TensorName
from cachesmith.policies.rows import ClosedRow, Taylor
from cachesmith.policies.rows import Reuse as Reuse
from cachesmith.policies.token_refresh import Refresh

Side = Annotated[int, Field(ge=1, le=100_000)]
"""Tokens along one side of a picture."""


class Fitted(Grown):
    """Weights learned by calibration, one row per step of the sampler.

    `weights` names a float32 array [lanes, steps, taps]; `input_weights`, if given, one of the same form
    for the unit's input: [lanes, steps, taps + 1], the last column for the input now.
    A lane is one stream of one unit, counted over all units of the profile.

    With `ids`, an int32 array [lanes, channels], every channel follows the weights of its group, and both arrays
    have a last axis more: [lanes, steps, taps, groups] and [lanes, steps, taps + 1, groups]. A group may be a
    cluster of channels or a single one. Where lanes differ in their channels, the ids of the narrower ones end in -1.
    """

    LATER = ("ids",)

    kind: Literal["fitted"] = "fitted"
    weights: TensorName
    input_weights: TensorName | None = None
    ids: TensorName | None = None


Row = Annotated[ClosedRow | Fitted, Field(discriminator="kind")]


class Clusters(Frozen):
    """HyCa (arXiv 2510.04188): channels are grouped, each group has a solver of its own.

    `ids` names an int32 array [lanes, channels] with values below the number of `rows`; those of a lane with fewer
    channels than others end in -1.
    """

    kind: Literal["clusters"] = "clusters"
    ids: TensorName
    rows: tuple[Annotated[ClosedRow, Field(discriminator="kind")], ...] = Field(min_length=1, max_length=64)


class Subspace(Frozen):
    """SVD-Cache (arXiv 2601.07396): forecast the principal part, reuse the residual.

    `basis` names a float32 array [lanes, channels, rank] with orthonormal columns.
    """

    basis: TensorName


class Band(Frozen):
    """FreqCa (arXiv 2510.08669): reuse the low frequencies over the tokens, forecast the high ones.

    `cutoff` is the share of the frequencies that counts as low: 0 reuses none of them, 1 all. `grid`, the rows and
    columns of the tokens, asks for a two-dimensional cosine transform; a stream of another number of tokens (text, or
    text joined with the picture), and every stream without a grid, gets a Fourier transform over all its tokens in
    their order.
    """

    cutoff: float = Field(default=0.1, ge=0, le=1)
    grid: tuple[Side, Side] | None = None


class Correction(Frozen):
    """Error-Optimized Cache (arXiv 2501.19243): add what forecasts of this step were off by on average.

    `offsets` names a float32 array [lanes, steps, channels]. Like fitted weights it belongs to one schedule: a step
    whose planned sources are not there is computed.
    """

    offsets: TensorName


class Observed(Frozen):
    """RFE as published (arXiv 2602.19506): s = |F0 - F1| / |I0 - I1| of the last two computed steps."""

    kind: Literal["observed"] = "observed"


class Calibrated(Frozen):
    """RFE with s measured offline: `scales` names a float32 array [lanes, time bins]."""

    kind: Literal["calibrated"] = "calibrated"
    scales: TensorName


class Mixed(Frozen):
    """The observed ratio times a correction measured offline: `scales` as in `Calibrated`."""

    kind: Literal["mixed"] = "mixed"
    scales: TensorName


Magnitude = Annotated[Observed | Calibrated | Mixed, Field(discriminator="kind")]


class Forecaster(Grown):
    """Weights of past outputs, optionally projected, rescaled, corrected and refreshed; see the module's formulas."""

    LATER = ("band", "correction", "refresh")

    rows: Annotated[ClosedRow | Fitted | Clusters, Field(discriminator="kind")] = Taylor()
    subspace: Subspace | None = None
    band: Band | None = None
    magnitude: Magnitude | None = None
    correction: Correction | None = None
    refresh: Refresh | None = None


def by_step(forecaster: Forecaster) -> bool:
    """Whether weights or a correction were fitted for each step of one schedule."""
    return isinstance(forecaster.rows, Fitted) or forecaster.correction is not None
