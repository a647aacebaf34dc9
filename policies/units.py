"""Which parts of the transformer are computed or forecast as a whole."""

from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from cachesmith.policies.base import MAX_GROUPS, Frozen, Grown
from cachesmith.policies.errors import PolicyError

Follower = Literal["first", "second", "later"]
"""A half of a guided batch or, where guidance is by calls of their own, every call of a step but the first."""

GUIDANCE = "guidance"
"""The unit, and its group, that a `Stack` with a follower has beside the blocks."""


class Stack(Grown):
    """All blocks as one unit: input = hidden state before the first block, output = the residual they add.

    With a `follower`, the blocks are that half of guidance which it follows, and the follower is a unit of its own,
    `guidance`: its input is the other half's output, its output is how much its own differs.
    """

    LATER = ("follower",)

    kind: Literal["stack"] = "stack"
    follower: Follower | None = None


class Segments(Frozen):
    """Runs of consecutive blocks; a new unit starts at each index in `starts`, the first of which is 0.

    Negative starts, after all others, count from the end: -1 is the last block.
    """

    kind: Literal["segment"] = "segment"
    follower: ClassVar[None] = None
    starts: tuple[Annotated[int, Field(ge=-10_000, le=10_000)], ...] = Field(
        min_length=1, max_length=MAX_GROUPS
    )

    @field_validator("starts")
    @classmethod
    def _ascending(cls, starts: tuple[int, ...]) -> tuple[int, ...]:
        keys = [(start < 0, start) for start in starts]
        if starts[0] != 0 or any(b <= a for a, b in pairwise(keys)):
            raise ValueError(f"segment starts must ascend from 0, negative ones last, got {starts}")
        return starts

    def resolved(self, blocks: int) -> tuple[int, ...]:
        """Return the starts in a model of `blocks` blocks, counted from 0; raise `PolicyError` if they do not fit."""
        found = tuple(start if start >= 0 else blocks + start for start in self.starts)
        beyond = [start for start in self.starts if not -blocks < start < blocks]
        if beyond:
            raise PolicyError(
                f"a segment starts at block {beyond[-1]}, but the model has {blocks}; recalibrate it"
            )
        if any(b <= a for a, b in pairwise(found)):
            raise PolicyError(
                f"the segment starts {self.starts} are {found} in a model of {blocks} blocks; they must ascend"
            )
        return found


class Modules(Frozen):
    """Attention and MLP of every block: input after adaLN modulation, output before the gate."""

    kind: Literal["module"] = "module"
    follower: ClassVar[None] = None


Units = Annotated[Stack | Segments | Modules, Field(discriminator="kind")]
