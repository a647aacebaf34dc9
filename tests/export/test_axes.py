"""Axes of inputs that were seen in one size."""

import pytest

from cachesmith.export.axes import at_one_size, axes_of
from cachesmith.policies import EngineError


def test_a_table_has_one_axis_of_tokens() -> None:
    """Kandinsky 5: eight tokens, and eight pairs of channels a head."""
    call = {"visual": (2, 8, 32), "rope": (1, 8, 1, 8, 2, 2), "mask": (2, 1, 8, 8)}
    axes = axes_of(("visual",), [call])
    assert axes["rope"] == (1, "tokens", 1, 8, 2, 2)
    assert axes["mask"] == ("batch", 1, "tokens", "tokens")


def test_one_size_keeps_the_batch() -> None:
    call = {"x": (2, 8, 32), "rope": (8, 16)}
    axes = axes_of(("x",), [call])
    assert at_one_size(axes, [call, call]) == {"x": ("batch", 8, 32), "rope": (8, 16)}
    other = {"x": (2, 12, 32), "rope": (12, 16)}
    both = axes_of(("x",), [call, other])
    assert at_one_size(both, [call, other]) == both


def test_streams_have_samples() -> None:
    with pytest.raises(EngineError, match="`und_seq` without an axis of samples"):
        axes_of(("und_seq", "gen_seq"), [{"und_seq": (2, 12), "gen_seq": (4, 12)}])
