"""Token-wise caching: which tokens of a unit are computed on a step that forecasts the rest.

It needs units that treat every token by itself. With units `module` these are the MLPs; of the other units the same
forecaster computes nothing. What a token's forecast was found to be off by is added to its forecasts until the unit
is computed as a whole. Under `Reuse` that is to overwrite the token in the cache, as ToCa does; under a series it is
to overwrite its term of order 0, as ClusCa does, without disturbing the differences.
"""

from typing import Annotated, Literal

from pydantic import Field

from cachesmith.policies.base import Frozen

Period = Annotated[int, Field(ge=1, le=1000)]
"""Refresh on the first forecast step after a computed one, and on every so many-th from there."""


class Scored(Frozen):
    """Compute the tokens of highest score (ToCa, arXiv 2410.05317, eq. for S = sum_i lambda_i s_i).

        score = z / |z| + age_weight * age

    with |z| over the tokens of a sample, and age the number of forecast steps since the token was computed. ToCa's z
    is the attention a token receives, which fused attention does not tell. `importance` stands in for it: `norm` of
    the unit's input, how far that input `moved` since the token was computed, `random` numbers (alike for all
    samples, and not divided by |z|: DuCa, arXiv 2412.18911), or `none`, which leaves the age.

    `ratio` of the tokens is computed: ratio * (1 + slope) in the first block, falling evenly to ratio * (1 - slope)
    in the last.
    """

    kind: Literal["scored"] = "scored"
    ratio: float = Field(default=0.175, ge=0, le=1)
    importance: Literal["norm", "moved", "random", "none"] = "norm"
    age_weight: float = Field(default=0.0, ge=0, le=1000)
    slope: float = Field(default=0.0, ge=-1, le=1)
    every: Period = 1


class Clustered(Frozen):
    """Compute one token, taken at random, of every cluster of tokens with similar outputs (ClusCa, 2509.10312).

    The clusters are those of `iterations` rounds of k-means over the tokens of a sample at the newest computed step.
    The other tokens are drawn towards the one computed in their cluster: (1 - blend) * forecast + blend * computed.
    """

    kind: Literal["clustered"] = "clustered"
    clusters: int = Field(default=16, ge=1, le=1024)
    iterations: int = Field(default=5, ge=1, le=100)
    blend: float = Field(default=0.005, ge=0, le=1)
    every: Period = 1


Refresh = Annotated[Scored | Clustered, Field(discriminator="kind")]
