"""Mutated policy files: each is refused in one line, or is a policy that can be written and read again.

`python -m tests.reliability.test_policy_files COUNT SEEDS` prints the figures of docs/reliability.md.
"""

import json
import sys
from collections import Counter
from random import Random
from time import process_time
from typing import Any, NamedTuple

import numpy as np
import pytest
from tests.policies.conftest import rich_policy
from tests.reliability.mutate import damaged, edit, edited

from cachesmith.policies import Policy, PolicyError, canonical, content_id, decode, encode, preset
from cachesmith.policies.file.container import Contents, pack

SECONDS = 2.0


def packed(text: str, arrays: Any) -> bytes:
    """A file with this document, its id made to match, as a hostile author would."""
    return pack(Contents(text, content_id(text.encode(), arrays), arrays))


class Base(NamedTuple):
    """A policy, its file and its document, to be mutated many times."""

    policy: Policy
    file: bytes
    document: str

    @classmethod
    def of(cls, policy: Policy) -> "Base":
        return cls(policy, encode(policy), canonical(policy.document).decode())


def lying_document(base: Base, draw: Random) -> bytes:
    return packed(edited(json.loads(base.document), draw), base.policy.arrays)


def lying_header(base: Base, draw: Random) -> bytes:
    start = 8 + int.from_bytes(base.file[:8], "little")
    header = json.loads(base.file[8:start])
    edit(header, draw)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + base.file[start:]


def odd_array(base: Base, draw: Random) -> bytes:
    if not base.policy.arrays:
        return lying_document(base, draw)
    shape = [draw.randint(0, 9) for _ in range(draw.randint(0, 4))]
    fill = draw.choice([0, 1, -1, 3e38, float("nan"), float("-inf")])
    with np.errstate(invalid="ignore"):
        array = np.full(shape, fill, np.float32).astype(draw.choice(["float32", "int32"]))
    return packed(base.document, {**base.policy.arrays, draw.choice(sorted(base.policy.arrays)): array})


def damaged_file(base: Base, draw: Random) -> bytes:
    return damaged(base.file, draw)


KINDS = (damaged_file, lying_document, lying_header, odd_array)


def outcome(data: bytes, policy: Policy, honest: bool) -> str:
    """What came of a file; an author who does not know of the id can only be refused or be right."""
    try:
        found = decode(data)
    except PolicyError as error:
        assert str(error).isprintable() and 20 < len(str(error)) < 3000, error
        return "refused"
    assert decode(encode(found)) == found
    assert not honest or found == policy
    return "accepted"


def campaign(count: int, seed: int) -> tuple[Counter[str], float]:
    """Mutate `count` files; return what came of them, and the most seconds one took."""
    bases = [Base.of(p) for p in (rich_policy(), *map(preset, ("taylorseer", "toca", "teacache", "freqca")))]
    tally: Counter[str] = Counter()
    slowest = 0.0
    for number in range(count):
        draw = Random(seed * 1_000_000_007 + number)
        kind, base = KINDS[number % len(KINDS)], draw.choice([bases[0], *bases])
        data = kind(base, draw)
        begun = process_time()
        said = outcome(data, base.policy, kind in (damaged_file, lying_header))
        slowest = max(slowest, process_time() - begun)
        tally[f"{kind.__name__}: {said}"] += 1
    return tally, slowest


@pytest.mark.parametrize("count", [1000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_mutated_policy_files(count: int) -> None:
    tally, slowest = campaign(count, seed=count)
    assert tally.total() == count and slowest < SECONDS
    assert tally["damaged_file: refused"] and tally["lying_document: accepted"]


if __name__ == "__main__":
    total = Counter[str]()
    for seed in range(int(sys.argv[2])):
        tally, slowest = campaign(int(sys.argv[1]), seed)
        total += tally
        print(total.total(), dict(total), f"slowest {slowest:.3f} s", flush=True)
