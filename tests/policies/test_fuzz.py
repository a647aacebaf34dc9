"""Whatever the bytes: either a `PolicyError` of one line, or a policy that can be written and read again."""

import json
from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reliability.mutate import edit, edited

from cachesmith.policies import Arrays, Policy, PolicyError, canonical, content_id, decode, encode, preset
from cachesmith.policies.file.container import Contents, pack

many = settings(max_examples=1000, deadline=None)

draws = st.randoms(use_true_random=False)


def outcome(data: bytes) -> Policy | None:
    try:
        policy = decode(data)
    except PolicyError as error:
        message = str(error)
        assert message.isprintable()
        assert 20 < len(message) < 3000
        return None
    assert decode(encode(policy)) == policy
    return policy


def packed(text: str, arrays: Arrays) -> bytes:
    return pack(Contents(text, content_id(text.encode(), arrays), arrays))


@many
@given(data=st.data())
def test_flipped_bits(grown: Policy, data: st.DataObject) -> None:
    file = bytearray(encode(grown))
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, len(file) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert outcome(bytes(file)) in (None, grown)


@many
@given(data=st.data())
def test_cut_and_spliced(grown: Policy, data: st.DataObject) -> None:
    file = encode(grown)
    start, stop = sorted((data.draw(st.integers(0, len(file))), data.draw(st.integers(0, len(file)))))
    filler = data.draw(st.binary(max_size=20))
    assert outcome(file[:start] + filler + file[stop:]) in (None, grown)


@settings(max_examples=300, deadline=None)
@given(size=st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 10_000)))
def test_header_length(grown: Policy, size: int) -> None:
    file = encode(grown)
    assert outcome(size.to_bytes(8, "little") + file[8:]) in (None, grown)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_noise(noise: bytes) -> None:
    assert outcome(noise) is None
    assert outcome(len(noise).to_bytes(8, "little") + noise) is None


@many
@given(draw=draws)
def test_edited_documents(grown: Policy, draw: Random) -> None:
    # as a file that was written this way on purpose: the id matches
    outcome(packed(edited(json.loads(canonical(grown.document)), draw), grown.arrays))


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(["toca", "duca", "clusca"]), draw=draws)
def test_edited_token_presets(name: str, draw: Random) -> None:
    outcome(packed(edited(json.loads(canonical(preset(name).document)), draw), {}))


@many
@given(draw=draws)
def test_edited_headers(grown: Policy, draw: Random) -> None:
    file = encode(grown)
    size = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + size])
    edit(header, draw)
    text = json.dumps(header).encode()
    assert outcome(len(text).to_bytes(8, "little") + text + file[8 + size :]) in (None, grown)


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_edited_arrays(grown: Policy, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(grown.arrays)))
    shape = data.draw(st.lists(st.integers(0, 9), max_size=4))
    fill = data.draw(st.sampled_from([0, 1, -1, 3e38, float("nan"), float("-inf")]))
    dtype = data.draw(st.sampled_from(["float32", "int32"]))
    with np.errstate(invalid="ignore"):
        array = np.full(shape, fill, dtype="float32").astype(dtype)
    outcome(packed(canonical(grown.document).decode(), {**grown.arrays, name: array}))
