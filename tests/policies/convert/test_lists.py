"""Masks, SmoothCache, TeaCache, and reading text."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import sample_dit, tiny_dit

from cachesmith.policies import Fixed, Modules, PolicyError, Stack, preset
from cachesmith.policies.convert import (
    MAX_CHARACTERS,
    SOURCES,
    TARGETS,
    export_profile,
    import_settings,
    read_settings,
    write_settings,
)
from cachesmith.runtime import apply


@pytest.mark.parametrize(
    "text", ["110010", "CCFFCF", "[1, 1, 0, 0, 1, 0]", '"110010"', "- 1\n- 1\n- 0\n- 0\n- 1\n- 0\n"]
)
def test_masks_in_every_spelling(text: str) -> None:
    profile = import_settings(read_settings(text), "mask").policy.profile()
    assert profile.gate == Fixed(mask="CCFFCF") and profile.units == Stack()


@pytest.mark.parametrize("raw", ["", "012", "0110", [1, 2], [], [True, "x"], {"mask": 1}, None, 1.5])
def test_what_is_no_mask(raw: Any) -> None:
    with pytest.raises(PolicyError):
        import_settings(raw, "mask")


def test_smoothcache_schedules_each_kind_and_computes_the_rest() -> None:
    schedule = {"attn1": [1, 0, 1, 0], "ff": [1, 1, 1, 0]}
    profile = import_settings(schedule, "smoothcache").policy.profile()
    assert profile.units == Modules()
    assert profile.gate == Fixed(mask="CCCC", groups={"attn": "CFCF", "mlp": "CCCF"})
    fork = import_settings({"attn": [1, 0, 1, 0], "mlp": [1, 1, 1, 0]}, "smoothcache").policy.profile()
    assert fork == profile


def test_smoothcache_on_a_model() -> None:
    schedule = {"attn1": [1, 0] * 5}
    pipe = tiny_dit()
    with apply(pipe, import_settings(schedule, "smoothcache").policy) as session:
        sample_dit(pipe, steps=10)
    blocks = len(pipe.transformer.transformer_blocks)
    attention = sum(count for name, count in session.stats.computed.items() if name.startswith("attn"))
    mlp = sum(count for name, count in session.stats.computed.items() if name.startswith("mlp"))
    assert (attention, mlp) == (5 * blocks, 10 * blocks)


@pytest.mark.parametrize(
    "raw",
    [
        {},
        [1],
        {"conv": [1, 0]},
        {"attn": [1, 0], "attn1": [1, 0]},
        {"attn": [0, 1]},
        {"attn": [1, 0], "ff": [1]},
        {"attn-0": [1]},
    ],
)
def test_what_is_no_smoothcache_schedule(raw: Any) -> None:
    with pytest.raises(PolicyError):
        import_settings(raw, "smoothcache")


def test_teacache() -> None:
    flux = [498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861]
    found = import_settings({"coefficients": flux, "threshold": 0.25}, "teacache").policy
    gate: Any = found.profile().gate
    assert list(gate.polynomial) == flux and gate.threshold == 0.25
    assert import_settings({"coefficients": flux, "rel_l1_thresh": 0.25}, "teacache").policy == found


@pytest.mark.parametrize(
    "raw", [{"coefficients": [], "threshold": 1}, {"coefficients": [1.0]}, {"threshold": 0.2}]
)
def test_what_is_no_teacache(raw: Any) -> None:
    with pytest.raises(PolicyError):
        import_settings(raw, "teacache")


def test_unknown_formats_list_the_known() -> None:
    with pytest.raises(PolicyError, match="smoothcache"):
        import_settings({}, "nonsense")
    with pytest.raises(PolicyError, match="cache-dit"):
        export_profile(preset("fora"), "nonsense")


def test_more_steps_than_a_policy_takes() -> None:
    flags = [1] + [0] * 10_000
    for source, raw in (("smoothcache", {"attn": flags}), ("mask", flags)):
        with pytest.raises(PolicyError, match="at most 10000"):
            import_settings(raw, source)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "raw", [None, 3, "x", [], {}, {"a": {"b": [1]}}, [[1]], {"cache_config": None}, {1: 2}]
)
def test_nonsense_is_a_policy_error_or_a_policy(source: str, raw: Any) -> None:
    try:
        import_settings(raw, source, 10)
    except PolicyError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x [1]\nb: *x\n", "alias"),
        ("!!python/object/apply:os.system ['true']", "cannot read"),
        ("a: [1, 2", "cannot read"),
        ("a" * (MAX_CHARACTERS + 1), "the limit is"),
        ("[" * 100_000, "nested|cannot read"),
        ("\x00", "cannot read"),
    ],
)
def test_text_that_is_refused(text: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        read_settings(text)


@pytest.mark.parametrize("form", sorted({form for _, form in TARGETS.values()} - {"text"}))
def test_text_there_and_back_again(form: str) -> None:
    values = {"a": [1, 0], "b": {"c": 1e-5, "d": None}}
    assert json.dumps(read_settings(write_settings(values, form, ("a note",)))) == json.dumps(values)


PUBLISHED = Path(__file__).parent / "published"


@pytest.mark.parametrize(
    ("name", "cached"),
    [("flux_k37_budcache.txt", 37), ("flux_k41_gpf_reuse_e10_1.txt", 41), ("wan21_shared_K29.json", 29)],
)
def test_published_masks_in_which_one_means_cached(name: str, cached: int) -> None:
    settings = read_settings((PUBLISHED / name).read_text())
    gate = import_settings(settings, "cached-mask").policy.profile().gate
    assert isinstance(gate, Fixed) and len(gate.mask) == 50 and gate.mask.count("F") == cached


def test_the_wrong_polarity_leads_to_the_right_one() -> None:
    bits = (PUBLISHED / "flux_k37_budcache.txt").read_text()
    with pytest.raises(PolicyError, match="--from cached-mask"):
        import_settings(read_settings(bits), "mask")
    with pytest.raises(PolicyError, match="--from mask"):
        import_settings(read_settings("110010"), "cached-mask")


@pytest.mark.parametrize("target", ["mask", "cached-mask"])
def test_masks_there_and_back_again(target: str) -> None:
    policy = import_settings("110010", "mask").policy
    values, _ = export_profile(policy, target)
    text = write_settings(values, TARGETS[target][1])
    assert text == {"mask": "110010\n", "cached-mask": "001101\n"}[target]
    assert import_settings(read_settings(text), target).policy == policy


def test_masks_that_would_be_numbers_elsewhere() -> None:
    assert read_settings("0101") == "0101" and read_settings(" 1011\n") == "1011"


@pytest.mark.parametrize(
    "raw", [{"bits": "01"}, {"schema": "video_spx.schedule.v1"},
            {"schema": "video_spx.schedule.v1", "bits": "0101", "cache_steps": [1]}]
)  # fmt: skip
def test_what_is_no_cached_mask(raw: Any) -> None:
    with pytest.raises(PolicyError):
        import_settings(raw, "cached-mask")


def test_a_mask_loses_no_forecaster_in_silence() -> None:
    policy = preset("taylorseer-lite", interval=3, order=2)
    with pytest.raises(PolicyError, match="--order 0"):
        export_profile(policy, "mask", steps=9)
    assert export_profile(policy, "mask", steps=9, order=0)[0].startswith("11")
    with pytest.raises(PolicyError, match="stack"):
        export_profile(preset("fora"), "mask", steps=9)
