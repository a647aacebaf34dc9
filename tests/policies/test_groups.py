"""Fitted weights by group of channels, and the moving average: schema, checks, files."""

import json
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policies.test_fuzz import draws, outcome, packed
from tests.reliability.mutate import edited

from cachesmith.policies import (
    Document,
    Ema,
    Fitted,
    Fixed,
    Forecaster,
    Policy,
    PolicyError,
    Profile,
    Subspace,
    canonical,
    decode,
    encode,
    lane_ids,
)
from cachesmith.policies.base import Arrays

ARRAYS: Arrays = {
    "w": np.ones((2, 8, 3, 5), np.float32),
    "v": np.ones((2, 8, 4, 5), np.float32),
    "ids": (np.arange(12, dtype=np.int32) % 5).reshape(2, 6),
    "b": np.eye(6, 2, dtype=np.float32)[None].repeat(2, 0),
}


def grouped(**changes: Any) -> Policy:
    row = Fitted(weights="w", input_weights="v", ids="ids")
    profile = Profile(
        gate=Fixed(mask="CCFFCFFF"),
        forecaster=Forecaster(rows=row, subspace=Subspace(basis="b")),
        overrides={"segment.1": Forecaster(rows=Ema(beta=0.8, taps=5))},
    )
    return Policy(Document(name="grouped", profiles={"default": profile}), ARRAYS | changes)


def test_a_round_trip() -> None:
    assert decode(encode(grouped())) == grouped()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w": np.ones((2, 8, 3), np.float32)}, r"expected \[lanes, steps, taps, groups\]"),
        ({"v": np.ones((2, 8, 4), np.float32)}, r"expected \[lanes, steps, taps, groups\]"),
        ({"v": np.ones((2, 8, 4, 4), np.float32)}, "input_weights has 4 groups and weights has 5"),
        ({"v": np.ones((2, 8, 3, 5), np.float32)}, "has 3 taps, expected 4"),
        ({"w": np.ones((2, 7, 3, 5), np.float32)}, "rows for 7 steps, expected 8"),
        ({"ids": np.full((2, 6), 5, np.int32)}, "ids holds 5 to 5 for 5 clusters"),
        ({"ids": np.full((2, 6), -1, np.int32)}, "ids holds -1 to -1"),
        ({"ids": np.array([[0] * 6, [0, 1, -1, 2, -1, -1]], np.int32)}, "ids holds -1 to 2"),
        ({"ids": np.array([[0] * 6, [-1] * 6], np.int32)}, "ids holds -1 to 0"),
        ({"ids": np.array([[0] * 6, [0] * 5 + [-2]], np.int32)}, "ids holds -2 to 0"),
        ({"ids": np.array([[0] * 6, [0, 9, 0, -1, -1, -1]], np.int32)}, "ids holds 0 to 9 for 5"),
        ({"ids": np.zeros((2, 7), np.int32)}, "ids for 7 channels and a basis for 6"),
        ({"ids": np.zeros((3, 6), np.int32)}, "lanes"),
        ({"ids": np.zeros((2, 6), np.float32)}, "expected int32"),
        ({"w": np.full((2, 8, 3, 5), np.nan, np.float32)}, "NaN"),
    ],
)
def test_wrong_groups_are_named(changes: Arrays, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        grouped(**changes)


def test_a_lane_may_have_fewer_channels() -> None:
    narrow = np.array([[0, 1, 2, 3, 4, 4], [3, 0, 2, 1, -1, -1]], np.int32)
    again = decode(encode(grouped(ids=narrow)))
    assert [lane_ids(lane).tolist() for lane in again.arrays["ids"]] == [[0, 1, 2, 3, 4, 4], [3, 0, 2, 1]]


def test_weights_without_groups_are_written_as_before() -> None:
    assert "ids" not in Fitted(weights="w").model_dump(mode="json")
    assert Fitted(weights="w", ids="i").model_dump(mode="json")["ids"] == "i"


@settings(max_examples=300, deadline=None)
@given(draw=draws, data=st.data())
def test_edited_documents_and_arrays(draw: Random, data: st.DataObject) -> None:
    outcome(packed(edited(json.loads(canonical(grouped().document)), draw), ARRAYS))
    name = data.draw(st.sampled_from(sorted(ARRAYS)))
    shape = data.draw(st.lists(st.integers(0, 9), max_size=5))
    array = np.full(
        shape, data.draw(st.sampled_from([0, 1, -1, 9])), data.draw(st.sampled_from(["<f4", "<i4"]))
    )
    outcome(packed(canonical(grouped().document).decode(), ARRAYS | {name: array}))
