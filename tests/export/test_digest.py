"""Keys by which graphs and engines are known again: equal contents have equal ones, whatever process asks."""

import numpy as np
import torch
from PIL import Image
from torch import nn

from cachesmith.export.digest import digest, weights_digest


def test_pictures_and_arrays_are_known_by_their_contents() -> None:
    """Neither by an address, which is another in every process, nor by an abbreviated print."""
    picture, array = Image.new("RGB", (8, 8), "red"), np.zeros(5000)
    assert digest([{"image": picture}]) == digest([{"image": picture.copy()}])
    assert digest([{"image": picture}]) != digest([{"image": Image.new("RGB", (8, 8), "blue")}])
    other = array.copy()
    other[2500] = 1
    assert digest([array]) == digest([array.copy()]) != digest([other])


class Scaled(nn.Module):
    def __init__(self, scale: float, persistent: bool):
        super().__init__()
        self.linear = nn.Linear(2, 2, bias=False)
        nn.init.ones_(self.linear.weight)
        self.register_buffer("scale", torch.full((2,), scale), persistent=persistent)


def test_buffers_count_whether_they_are_saved_or_not() -> None:
    for persistent in (True, False):
        assert weights_digest([Scaled(1.0, persistent)]) == weights_digest([Scaled(1.0, persistent)])
        assert weights_digest([Scaled(1.0, persistent)]) != weights_digest([Scaled(2.0, persistent)])
