"""How a pipeline guides its samples, told from what reached the transformer."""

from collections.abc import Collection
from typing import Literal

_Guidance = Literal["none", "batched", "sequential"]


def guidance_of(branches: Collection[str], rows: int, samples: int) -> _Guidance:
    """Return how uncached runs of `samples` samples were guided: by calls of their own, by more rows, or not at all.

    rows: of one step's calls, summed over the runs.
    """
    if len(branches) > 1:
        return "sequential"
    return "batched" if rows > samples else "none"
