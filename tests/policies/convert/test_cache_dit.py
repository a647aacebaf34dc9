"""cache-dit's YAML: there and back again, and what the real loader makes of it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachesmith.policies import (
    Document,
    Fixed,
    Forecaster,
    Hermite,
    Interval,
    Modules,
    Observed,
    Policy,
    PolicyError,
    Profile,
    Relational,
    Reuse,
    Segments,
    Stack,
    Taylor,
    mask,
    preset,
)
from cachesmith.policies.convert import export_profile, import_settings, read_settings, write_settings


def policy(**profile: Any) -> Policy:
    return Policy(Document(name="test", profiles={"default": Profile(**profile)}))


masks = st.text("CF", min_size=1, max_size=60).map(lambda tail: "C" + tail)


@settings(deadline=None)
@given(masks, st.integers(0, 4), st.integers(1, 9))
def test_there_and_back_again(letters: str, order: int, first: int) -> None:
    rows = Taylor(order=order) if order else Reuse()
    original = policy(
        units=Segments(starts=(0, first)),
        gate=Fixed(mask=letters, groups={"segment.0": "C" * len(letters)}),
        forecaster=Forecaster(rows=rows),
    )
    values, notes = export_profile(original, "cache-dit")
    text = write_settings(values, "yaml", notes)
    assert import_settings(read_settings(text), "cache-dit").policy.profile() == original.profile()
    assert bool(notes) == (order > 0 and letters[1:2] == "C")


@pytest.mark.parametrize(
    "gate", [Interval(interval=5, warmup=2), Interval(interval=3, tail=2), Fixed(mask="C" + "F" * 49)]
)
def test_a_stack_keeps_its_schedule_and_says_that_one_block_is_computed(gate: Any) -> None:
    values, notes = export_profile(policy(units=Stack(), gate=gate), "cache-dit", steps=50)
    back = import_settings(values, "cache-dit").policy.profile()
    assert isinstance(back.gate, Fixed) and back.gate.mask == mask(gate, 50)
    assert back.units == Segments(starts=(0, 1)) and back.gate.groups == {"segment.0": "C" * 50}
    assert "always computes the first block" in notes[0]


def test_the_real_loader_reads_it(tmp_path: Path) -> None:
    cache_dit = pytest.importorskip("cache_dit")
    values, notes = export_profile(preset("taylorseer-lite", interval=4, order=2), "cache-dit", steps=20)
    path = tmp_path / "cache.yaml"
    path.write_text(write_settings(values, "yaml", notes))
    read = cache_dit.load_configs(str(path))
    cache, calibrator = read["cache_config"], read["calibrator_config"]
    assert "".join("FC"[flag] for flag in cache.steps_computation_mask) == mask(
        Interval(interval=4, warmup=2), 20
    )
    assert (cache.steps_computation_policy, cache.num_inference_steps, cache.Fn_compute_blocks) == (
        "static",
        20,
        1,
    )
    assert (calibrator.enable_calibrator, calibrator.taylorseer_order) == (True, 2)
    # nothing was left at a default that would compute more, or dropped as unknown
    assert set(values["cache_config"]) - set(cache.as_dict()) == {
        "enable_taylorseer",
        "enable_encoder_taylorseer",
        "taylorseer_order",
    }


def test_reuse_needs_no_calibrator() -> None:
    cache_dit = pytest.importorskip("cache_dit")
    values, _ = export_profile(
        policy(gate=Interval(), forecaster=Forecaster(rows=Reuse())), "cache-dit", steps=9
    )
    assert cache_dit.load_configs(values)["calibrator_config"] is None


def test_every_field_of_the_real_config_is_known() -> None:
    cache_dit = pytest.importorskip("cache_dit")
    for field, default in cache_dit.DBCacheConfig().as_dict().items():
        if field != "cache_type" and default is not None:
            import_settings({"cache_config": {field: default, **static("101")}}, "cache-dit")


def static(flags: str) -> dict[str, Any]:
    return {"steps_computation_mask": [int(f) for f in flags], "steps_computation_policy": "static"}


@pytest.mark.parametrize("order", [0, 2])
def test_dbcache(order: int) -> None:
    config = {"Fn_compute_blocks": 4, "residual_diff_threshold": 0.12, "max_continuous_cached_steps": 2}
    config |= {"enable_taylorseer": True, "taylorseer_order": order} if order else {}
    found = import_settings({"cache_config": config}, "cache-dit").policy.profile()
    meant = preset("dbcache", threshold=0.12, fn=4, warmup=8, max_interval=3).profile()
    assert (found.units, found.gate) == (meant.units, meant.gate)
    assert found.forecaster.rows == (Taylor(order=order) if order else Reuse())
    with pytest.raises(PolicyError, match="max_cached_steps"):
        import_settings({"cache_config": {"max_cached_steps": 9}}, "cache-dit")


def test_cache_dits_defaults_are_meant() -> None:
    profile = import_settings({"cache_config": static("1100")}, "cache-dit").policy.profile()
    assert profile.units == Segments(starts=(0, 8)) and profile.forecaster.rows == Reuse()


def test_a_mask_is_for_the_steps_asked_for() -> None:
    values = {"cache_config": static("110")}
    assert import_settings(values, "cache-dit", 3).policy == import_settings(values, "cache-dit").policy
    with pytest.raises(PolicyError, match="steps_computation_mask has 3 entries for 4 steps"):
        import_settings(values, "cache-dit", 4)


TAYLOR = {"enable_taylorseer": True}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (static("110"), []),
        (static("110") | {"cfg_diff_compute_separate": False, "residual_diff_threshold": 1.5}, []),
        (static("110") | {"cfg_compute_first": True}, ["cfg_compute_first is left out"]),
        (static("110") | {"enable_separate_cfg": False}, ["enable_separate_cfg is left out"]),
        (TAYLOR, ["from step 3 on", "without enable_encoder_taylorseer cache-dit reuses the text's stream"]),
        (TAYLOR | {"enable_encoder_taylorseer": True}, ["from step 3 on"]),
        ({"enable_encoder_taylorseer": True}, []),
        ({"cfg_diff_compute_separate": False}, ["one guidance branch decides for both"]),
        ({"residual_diff_threshold": 1.5}, ["a residual_diff_threshold of 1 or more"]),
    ],
)
def test_what_a_policy_does_differently_is_said(config: dict[str, Any], said: list[str]) -> None:
    for values in (config, {"cache_config": config}):
        notes = import_settings(values, "cache-dit").notes
        assert len(notes) == len(said) and all(part in note for part, note in zip(said, notes, strict=True))


def test_the_text_stream_is_reused_unless_told() -> None:
    """What the note on `enable_encoder_taylorseer` says, in cache-dit itself."""
    cache_dit = pytest.importorskip("cache_dit")
    for values, told in ((TAYLOR, False), (TAYLOR | {"enable_encoder_taylorseer": True}, True)):
        calibrator = cache_dit.load_configs({"cache_config": values})["calibrator_config"]
        assert (calibrator.enable_calibrator, calibrator.enable_encoder_calibrator) == (True, told)
    assert (
        cache_dit.load_configs({"cache_config": {"enable_encoder_taylorseer": True}})["calibrator_config"]
        is None
    )


def test_the_flat_form_and_other_sections() -> None:
    flat = import_settings(static("1100"), "cache-dit")
    nested = import_settings({"cache_config": static("1100"), "attention_backend": "native"}, "cache-dit")
    assert flat.policy == nested.policy and "attention_backend" in nested.notes[0]


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ({"gate": Relational(thresholds=(0.1,))}, "the gate 'relational' decides while sampling"),
        ({"units": Modules(), "gate": Interval()}, "not units 'module'"),
        ({"gate": Interval(), "forecaster": Forecaster(rows=Hermite())}, "not the forecaster 'hermite'"),
        ({"gate": Interval(), "forecaster": Forecaster(magnitude=Observed())}, "no magnitude"),
        ({"gate": Interval(), "overrides": {"stack": Forecaster()}}, "no overrides"),
        ({"gate": Interval(), "axis": "sigma"}, "this profile in sigma"),
        ({"gate": Fixed(mask="CCF", groups={"stack": "CFF"})}, "not units 'stack'"),
        ({"gate": Fixed(mask="CHF"), "units": Stack(follower="first")}, "without a follower"),
    ],
)
def test_what_cannot_be_exported_is_named(profile: dict[str, Any], said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        export_profile(policy(**profile), "cache-dit", steps=3)


def test_a_schedule_alone_can_be_exported() -> None:
    original = policy(gate=Interval(), forecaster=Forecaster(rows=Hermite(), magnitude=Observed()))
    values, _ = export_profile(original, "cache-dit", steps=10, order=1)
    assert values["cache_config"]["taylorseer_order"] == 1


def test_steps_must_be_known() -> None:
    with pytest.raises(PolicyError, match="--num-inference-steps"):
        export_profile(policy(gate=Interval()), "cache-dit")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cache_config": {"nonsense": 1}}, "has no field 'nonsense'"),
        ({"nonsense": 1, "cache_config": {}}, "has no section 'nonsense'"),
        ({"cache_config": static("0110")}, "begin with a 1"),
        ({"cache_config": static("110") | {"num_inference_steps": 4}}, "3 entries for 4 steps"),
        ({"cache_config": static("110") | {"steps_computation_mask": "fast"}}, "write out the list"),
        (
            {"cache_config": static("110") | {"steps_computation_policy": "dynamic"}},
            "either a mask or a dynamic gate",
        ),
        ({"cache_config": static("110") | {"enable_dmd": True}}, "enable_dmd"),
        ({"cache_config": static("110") | {"cache_type": "DBPrune"}}, "cache_type"),
        ({"cache_config": static("110") | {"force_refresh_step_hint": 2}}, "force_refresh_step_hint"),
        ([1, 2], "a mapping of sections"),
        ({"cache_config": [1]}, "a mapping of its fields"),
    ],
)
def test_what_cannot_be_imported_is_named(values: Any, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        import_settings(values, "cache-dit")
