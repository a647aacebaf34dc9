import copy
from pathlib import Path

import pytest

from cachesmith.policies import FORMAT, MIGRATIONS, Policy, PolicyError, encode, load, upgrade
from cachesmith.policies.file.migrations import Migration, Raw


def rename(raw: Raw) -> Raw:
    return {"title": raw["name"]} | {key: value for key, value in raw.items() if key != "name"}


def shout(raw: Raw) -> Raw:
    return {**raw, "title": raw["title"].upper()}


CHAIN: dict[int, Migration] = {1: rename, 2: shout}


def test_every_older_format_has_a_migration() -> None:
    assert sorted(MIGRATIONS) == list(range(1, FORMAT))


@pytest.mark.parametrize(
    "raw", [{"format": 1, "name": "x"}, {"format": 2, "title": "x"}, {"format": 3, "title": "X"}]
)
def test_each_format_is_brought_to_the_current_one(raw: Raw) -> None:
    before = copy.deepcopy(raw)
    assert upgrade(raw, CHAIN, current=3) == {"format": 3, "title": "X"}
    assert raw == before


@pytest.mark.parametrize("found", [0, 4, -1, "1", True, None, 1.0, [1]])
def test_unknown_formats_name_what_is_read(found: object) -> None:
    with pytest.raises(PolicyError, match=r"this cachesmith reads 1, 2, 3; install a newer"):
        upgrade({"format": found}, CHAIN, current=3)


def test_a_document_without_format_is_refused() -> None:
    with pytest.raises(PolicyError, match="has format 'None'"):
        upgrade({})


def test_the_current_format_is_left_alone() -> None:
    raw: Raw = {"format": FORMAT, "name": "x"}
    assert upgrade(raw) == raw


def test_golden_file_of_format_1(golden: Path, rich: Policy) -> None:
    policy = load(golden)
    assert policy.id == "4c7b9bbf85828858"
    assert policy == rich
    assert encode(policy) == golden.read_bytes()


def test_golden_file_of_what_was_added_to_format_1(golden: Path, grown: Policy) -> None:
    later = golden.with_name("v1-grown.policy.safetensors")
    assert load(later) == grown and encode(grown) == later.read_bytes()
