"""Some rows of a batch, cut out of a block's arguments."""

from typing import Any

from torch import Tensor

from cachesmith.policies import PolicyError
from cachesmith.runtime.features import Feature
from cachesmith.runtime.hooks.runner import ComputeRows

_PER_TOKEN = ("rotary", "freqs")
"""Arguments named like these hold a row per token, not per sample, unless they have more than two axes."""


def take_rows(part: ComputeRows, name: str, value: Any) -> Any:
    """The rows of an argument: of every tensor in it that has one for each of the batch.

    Which arguments have rows is told from their extents and, of rows per token, from their names.
    """
    match value:
        case Tensor():
            per_token = value.ndim < 3 and any(word in name for word in _PER_TOKEN)
            return value[part.rows] if value.shape[:1] == (part.total,) and not per_token else value
        case dict():
            return {key: take_rows(part, key, item) for key, item in value.items()}
        case list() | tuple():
            return type(value)(take_rows(part, name, item) for item in value)
        case _:
            return value


def check_rows(part: ComputeRows, streams: Feature) -> None:
    """Raise `PolicyError` unless the streams have the part's rows, as between blocks that pass them on."""
    if any(len(stream) != part.total // 2 for stream in streams):
        raise PolicyError(
            f"half of a guided batch of {part.total} rows is computed alone, but a block was given "
            f"{[len(stream) for stream in streams]} rows, as where a ControlNet adds to every block's output; use "
            "a profile without a follower"
        )
