"""Some rows of a batch: cut out of a block's arguments, and what comes of them."""

from typing import Any

import torch
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


def whole_rows(result: Any) -> Any:
    """What a block made of half the rows, once for each half: a transformer that works on it has all rows there.

    The next block is given the same half of it; the other is never looked at.
    """
    match result:
        case Tensor():
            return torch.cat([result, result])
        case list() | tuple():
            return type(result)(whole_rows(item) for item in result)
        case _:
            return result


def check_rows(part: ComputeRows, streams: Feature) -> None:
    """Raise `PolicyError` unless the streams have the part's rows."""
    if any(len(stream) != part.total // 2 for stream in streams):
        raise PolicyError(
            f"half of a guided batch of {part.total} rows is computed alone, but a block was given "
            f"{[len(stream) for stream in streams]} rows; use a profile without a follower"
        )
