"""What flows in and out of units, as tensors: comparing features, and what they hold in memory."""

import torch
from torch import Tensor

Feature = tuple[Tensor, ...]
"""One tensor [B, ..., tokens, channels] for each of a unit's streams."""


def alike(a: Feature, b: Feature) -> bool:
    """Whether two features agree in shape, dtype and device."""
    return all(
        x.shape == y.shape and x.dtype == y.dtype and x.device == y.device for x, y in zip(a, b, strict=True)
    )


def difference(a: Feature, b: Feature) -> Feature:
    """a - b, stream by stream."""
    return tuple(x - y for x, y in zip(a, b, strict=True))


def owned(feature: Feature) -> Feature:
    """The same values in storage of their own: a view would keep all that it is a part of alive."""
    return tuple(t if t.untyped_storage().nbytes() == t.nbytes else t.clone() for t in feature)


def total(value: Tensor) -> Tensor:
    """The sum of all values, on their device: not finite if one of them is not. Nothing is read."""
    return value.sum(dtype=torch.float32)
