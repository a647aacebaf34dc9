import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachesmith.policies import Fixed, Interval, PolicyError, computations, halves, mask, remap

PUBLISHED = [
    *[("TaylorSeer on DiT", 2, n, nfc) for n, nfc in {4: 14, 5: 11, 6: 10, 7: 8, 9: 7}.items()],
    *[("TaylorSeer on FLUX", 3, n, nfc) for n, nfc in {4: 14, 9: 8}.items()],
    *[("FORA", 1, n, nfc) for n, nfc in {3: 17, 7: 8}.items()],
    *[("TaylorSeer on HunyuanVideo", 1, n, nfc) for n, nfc in {5: 10, 6: 9, 8: 7}.items()],
]


@pytest.mark.parametrize(("method", "warmup", "interval", "nfc"), PUBLISHED)
def test_published_numbers_of_computations(method: str, warmup: int, interval: int, nfc: int) -> None:
    assert mask(Interval(interval=interval, warmup=warmup), 50).count("C") == nfc


def counted(gate: Interval, steps: int) -> str:
    """TaylorSeer's rule as its code has it: a counter since the last full step."""
    letters, since = "", 0
    for step in range(steps):
        full = step < gate.warmup or since == gate.interval - 1
        since = 0 if full else since + 1
        letters += "C" if full or step >= steps - gate.tail else "F"
    return letters


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 12), st.integers(1, 60))
def test_interval_counts_from_the_last_computed_step(
    interval: int, warmup: int, tail: int, steps: int
) -> None:
    gate = Interval(interval=interval, warmup=warmup, tail=tail)
    assert mask(gate, steps) == counted(gate, steps)


def test_tail_and_short_runs() -> None:
    assert mask(Interval(interval=4, warmup=2, tail=2), 10) == "CCFFFCFFCC"
    assert mask(Interval(interval=1), 5) == "CCCCC"
    assert mask(Interval(interval=9, warmup=9), 3) == "CCC"
    with pytest.raises(PolicyError, match="0 steps"):
        mask(Interval(), 0)


def test_fixed_masks() -> None:
    gate = Fixed(mask="CFF", groups={"mlp": "CFC"})
    assert (mask(gate, 3), mask(gate, 3, "mlp"), mask(gate, 3, "attn")) == ("CFF", "CFC", "CFF")
    with pytest.raises(PolicyError, match="3 letters for 4 steps; use 3 steps or remap"):
        mask(gate, 4)


def test_steps_that_are_computed_by_half() -> None:
    gate = Fixed(mask="CHFCF")
    assert [mask(gate, 5, group) for group in (None, "stack", "guidance")] == ["CHFCF", "CCFCF", "CFFCF"]
    assert computations("CHFCF") == 2.5
    assert halves("CHFCF") == ("CCFCF", "CFFCF")
    assert remap("CHFCF", [5, 4, 3, 2, 1], [5, 4.5, 4, 3.5, 3, 2.5, 2, 1.5, 1, 0.5]) == "CFHFFFCFFF"
    # a step that is computed in full is not lost to one that is computed by half
    assert remap("CHC", [5, 4, 3.9], [5, 4]) == "CC"


masks = st.text("CF", max_size=40).map(lambda letters: "C" + letters)


@given(masks, st.data())
def test_the_same_noise_levels_change_nothing(letters: str, data: st.DataObject) -> None:
    sigmas = data.draw(st.lists(st.floats(0, 200), min_size=len(letters), max_size=len(letters)))
    assert remap(letters, sigmas, sigmas) == letters


@given(masks, st.lists(st.floats(0, 200), min_size=1, max_size=60))
def test_a_remapped_mask_is_a_mask(letters: str, sigmas: list[float]) -> None:
    old = [math.exp(-step) for step in range(len(letters))]
    found = remap(letters, old, sigmas)
    assert len(found) == len(sigmas)
    assert found[0] == "C"
    assert found.count("C") <= letters.count("C") + 1


def test_nearest_is_meant_in_log_sigma() -> None:
    assert remap("CFCF", [100.0, 10.0, 1.0, 0.0], [100.0, 30.0, 5.0, 1.2, 0.5, 0.0]) == "CFFCFF"
    assert remap("CFFC", [100.0, 10.0, 1.0, 0.0], [80.0, 0.02, 0.0]) == "CFC"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([1.0], [1.0, 0.5]),
        ([1.0, 0.5], []),
        ([1.0, -1.0], [1.0]),
        ([1.0, 0.5], [math.nan]),
        ([1.0, 0.5], [math.inf]),
    ],
)
def test_noise_levels_that_cannot_be_used(old: list[float], new: list[float]) -> None:
    with pytest.raises(PolicyError):
        remap("CF", old, new)
