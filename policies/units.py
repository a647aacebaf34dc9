"""Which parts of the transformer are computed or forecast as a whole."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator

from cachesmith.policies.base import Frozen


class Stack(Frozen):
    """All blocks as one unit: input = hidden state before the first block, output = the residual they add."""

    kind: Literal["stack"] = "stack"


class Segments(Frozen):
    """Runs of consecutive blocks; a new unit starts at each index in `starts`, the first of which is 0."""

    kind: Literal["segment"] = "segment"
    starts: tuple[Annotated[int, Field(ge=0, le=10_000)], ...] = Field(min_length=1, max_length=1000)

    @field_validator("starts")
    @classmethod
    def _ascending(cls, starts: tuple[int, ...]) -> tuple[int, ...]:
        if starts[0] != 0 or any(b <= a for a, b in pairwise(starts)):
            raise ValueError(f"segment starts must ascend from 0, got {starts}")
        return starts


class Modules(Frozen):
    """Attention and MLP of every block: input after adaLN modulation, output before the gate."""

    kind: Literal["module"] = "module"


Units = Annotated[Stack | Segments | Modules, Field(discriminator="kind")]
