"""How a unit's output is estimated on a forecast step.

With `F0, F1, ...` the newest computed outputs (newest first), `I0` the input that belongs to `F0` and `I` the
input now, a forecaster is composed of up to three parts:

    increment   D = sum_j w_j F_j - F0           `rows`: where the weights w come from
    subspace    D <- D V V^T                     `subspace`: the rest of F0 is reused
    magnitude   F = F0 + s |I - I0| D / |D|      `magnitude`: the length of the step is read off the input
    otherwise   F = F0 + D
"""

from typing import Annotated, Literal

from pydantic import Field

from cachesmith.policies.base import Frozen, TensorName


class Reuse(Frozen):
    """F = F0 (FORA, arXiv 2407.01425)."""

    kind: Literal["reuse"] = "reuse"


class Taylor(Frozen):
    """TaylorSeer's recursion (arXiv 2503.06923): every order divides by the latest gap only."""

    kind: Literal["taylor"] = "taylor"
    order: int = Field(default=1, ge=1, le=4)


class Lagrange(Frozen):
    """The polynomial through the last `order + 1` outputs: exact on polynomials for any spacing."""

    kind: Literal["lagrange"] = "lagrange"
    order: int = Field(default=1, ge=1, le=4)


class Hermite(Frozen):
    """HiCache (arXiv 2508.16984): contracted Hermite polynomials (physicists') replace Taylor's monomials."""

    kind: Literal["hermite"] = "hermite"
    order: int = Field(default=2, ge=1, le=4)
    contraction: float = Field(default=0.71, gt=0, le=1)


class AdamsBashforth(Frozen):
    """Explicit multistep on the slopes between computed outputs (AB-Cache, arXiv 2504.10540; HyCa's pool)."""

    kind: Literal["adams-bashforth"] = "adams-bashforth"
    order: Literal[2, 3] = 2


class Heun(Frozen):
    """Trapezoid of the last slope and the predicted one (RK2 and AM2 in HyCa's pool, arXiv 2510.04188)."""

    kind: Literal["heun"] = "heun"


class Bdf(Frozen):
    """Second-order backward differentiation, slope predicted linearly (HyCa's pool, arXiv 2510.04188)."""

    kind: Literal["bdf"] = "bdf"


class Fitted(Frozen):
    """Weights learned by calibration, one row per step of the sampler.

    `weights` names a float32 array [lanes, steps, taps]; `input_weights`, if given, one of the same form
    for the unit's input: [lanes, steps, taps + 1], the last column for the input now.
    A lane is one stream of one unit, counted over all units of the profile.
    """

    kind: Literal["fitted"] = "fitted"
    weights: TensorName
    input_weights: TensorName | None = None


Row = Annotated[
    Reuse | Taylor | Lagrange | Hermite | AdamsBashforth | Heun | Bdf | Fitted, Field(discriminator="kind")
]
ClosedRow = Annotated[
    Reuse | Taylor | Lagrange | Hermite | AdamsBashforth | Heun | Bdf, Field(discriminator="kind")
]


class Clusters(Frozen):
    """HyCa (arXiv 2510.04188): channels are grouped, each group has a solver of its own.

    `ids` names an int32 array [lanes, channels] with values below the number of `rows`.
    """

    kind: Literal["clusters"] = "clusters"
    ids: TensorName
    rows: tuple[ClosedRow, ...] = Field(min_length=1, max_length=64)


class Subspace(Frozen):
    """SVD-Cache (arXiv 2601.07396): forecast the principal part, reuse the residual.

    `basis` names a float32 array [lanes, channels, rank] with orthonormal columns.
    """

    basis: TensorName


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


class Forecaster(Frozen):
    """Weights of past outputs, optionally projected and optionally rescaled; see the module's formulas."""

    rows: Annotated[
        Reuse | Taylor | Lagrange | Hermite | AdamsBashforth | Heun | Bdf | Fitted | Clusters,
        Field(discriminator="kind"),
    ] = Taylor()
    subspace: Subspace | None = None
    magnitude: Magnitude | None = None
