"""diffusers' cache configs: their schedules are what diffusers' own hooks do."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import sample_dit, sample_flux, tiny_dit, tiny_flux

from cachesmith.policies import (
    Fixed,
    Forecaster,
    Interval,
    Modules,
    Policy,
    PolicyError,
    Profile,
    Reuse,
    Stack,
    Taylor,
    mask,
    preset,
)
from cachesmith.policies.convert import export_profile, import_settings
from cachesmith.policies.policy import unbound
from cachesmith.runtime import apply

TAYLORSEER = "diffusers-taylorseer"


def real(values: dict[str, Any]) -> Any:
    from diffusers import TaylorSeerCacheConfig

    dtype = values.get("taylor_factors_dtype", "torch.bfloat16")
    return TaylorSeerCacheConfig(
        **{**values, "taylor_factors_dtype": getattr(torch, dtype.removeprefix("torch."))}
    )


def by_halves() -> Policy:
    gate = Fixed(mask="CFHFCFFHFCFF")
    return unbound(
        Profile(units=Stack(follower="first"), gate=gate, forecaster=Forecaster(rows=Taylor(order=1))), {}
    )


def hooked(values: dict[str, Any], steps: int) -> str:
    """What diffusers' own hook decides."""
    from diffusers.hooks.hooks import CacheContext, StateManager
    from diffusers.hooks.taylorseer_cache import TaylorSeerCacheHook, TaylorSeerState

    config, manager = real(values), StateManager(TaylorSeerState)
    manager.set_context(CacheContext(name="test"))
    hook = TaylorSeerCacheHook(
        config.cache_interval,
        config.disable_cache_before_step,
        torch.float32,
        manager,
        config.disable_cache_after_step,
    )
    return "".join("C" if hook._measure_should_compute()[0] else "F" for _ in range(steps))


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.one_of(st.none(), st.integers(0, 40)))
def test_the_mask_is_what_the_real_hook_does(interval: int, before: int, after: int | None) -> None:
    values = {
        "cache_interval": interval,
        "disable_cache_before_step": before,
        "disable_cache_after_step": after,
    }
    gate = import_settings(values, TAYLORSEER, 40).policy.profile().gate
    assert isinstance(gate, Fixed) and gate.mask == hooked(values, 40)


def test_defaults_cache_attention_only() -> None:
    profile = import_settings({}, TAYLORSEER, 12).policy.profile()
    assert profile.units == Modules() and profile.forecaster.rows == Taylor(order=1)
    assert isinstance(profile.gate, Fixed)
    assert profile.gate.groups == dict.fromkeys(
        ("attn_image", "cross", "mlp", "mlp_context", "single"), "C" * 12
    )
    assert profile.gate.mask == "CCCFCFFFFCFF"


def test_lite_mode_is_the_stack_and_says_what_differs() -> None:
    converted = import_settings({"use_lite_mode": True, "max_order": 0}, TAYLORSEER, 12)
    assert converted.policy.profile().units == Stack()
    assert converted.policy.profile().forecaster.rows == Reuse()
    assert any("lite mode" in note for note in converted.notes)


@pytest.mark.parametrize(
    "gate",
    [
        Interval(interval=5),
        Interval(interval=3, tail=4),
        Interval(interval=2, warmup=4),
        Fixed(mask="CCCFCFFFCFFC"),
    ],
)
def test_there_and_back_again(gate: Any) -> None:
    steps = 12
    original = preset("taylorseer", order=2)
    profile = original.profile().model_copy(update={"gate": gate})
    document = original.document.model_copy(update={"profiles": {"default": profile}})
    values, _ = export_profile(type(original)(document), TAYLORSEER, steps=steps)
    assert hooked(values, steps) == mask(gate, steps)
    back = import_settings(values, TAYLORSEER, steps).policy.profile()
    assert isinstance(back.gate, Fixed) and back.gate.mask == mask(gate, steps) and not back.gate.groups
    assert back.forecaster == original.profile().forecaster


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("order", [0, 2])
def test_diffusers_gives_the_same_pictures(whole: bool, order: int) -> None:
    """On all modules, and on attention alone: the published method in both runtimes."""
    from diffusers.hooks import apply_taylorseer_cache
    from diffusers.hooks.hooks import CacheContext, _set_cache_context

    steps = 12
    values: dict[str, Any] = {"cache_interval": 3, "disable_cache_before_step": 2, "max_order": order}
    values["taylor_factors_dtype"] = "torch.float32"
    policy = import_settings(values, TAYLORSEER, steps).policy
    if whole:
        profile = policy.profile()
        assert isinstance(profile.gate, Fixed)
        gate = Fixed(mask=profile.gate.mask)
        changed = profile.model_copy(update={"gate": gate})
        document = policy.document.model_copy(update={"profiles": {"default": changed}})
        policy = type(policy)(document)
    exported, _ = export_profile(policy, TAYLORSEER)
    pipe = tiny_dit()
    with apply(pipe, policy) as session:
        ours = sample_dit(pipe, steps=steps)
    # DiT has no `enable_cache`, and its pipeline opens no cache context
    apply_taylorseer_cache(pipe.transformer, real(exported))
    _set_cache_context(pipe.transformer, CacheContext("test"))
    theirs = sample_dit(pipe, steps=steps)
    plain = sample_dit(tiny_dit(), steps=steps)
    assert not session.stats.fallbacks
    assert abs(ours - theirs).max() < 1e-4 < abs(ours - plain).max()


@pytest.mark.parametrize("attention_only", [True, False])
def test_single_stream_blocks_are_what_diffusers_makes_of_them(attention_only: bool) -> None:
    """FLUX computes attention and MLP of such blocks side by side: one unit here, three modules there."""
    steps = 12
    policy = preset("taylorseer", interval=3, order=1, warmup=1)
    if attention_only:
        policy = import_settings(
            {"cache_interval": 3, "disable_cache_before_step": 2}, TAYLORSEER, steps
        ).policy
    values, _ = export_profile(policy, TAYLORSEER, steps=steps)
    pipe = tiny_flux()
    with apply(pipe, policy):
        ours = sample_flux(pipe, steps=steps)
    pipe.transformer.enable_cache(real(values))
    theirs = sample_flux(pipe, steps=steps)
    plain = sample_flux(tiny_flux(), steps=steps)
    assert abs(ours - theirs).max() < 1e-5 < 1e-4 < abs(ours - plain).max()


def test_the_stack_is_exported_to_lite_mode() -> None:
    values, notes = export_profile(preset("taylorseer-lite", interval=5, warmup=1), TAYLORSEER, steps=12)
    assert values["use_lite_mode"] and "cache_identifiers" not in values
    assert any("lite mode" in note for note in notes)
    back = import_settings(values, TAYLORSEER, 12).policy.profile()
    assert back.units == Stack() and isinstance(back.gate, Fixed) and back.gate.mask == "CFFFFCFFFFCF"


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (preset("taylorseer", interval=5, warmup=2), "cannot express the schedule CCFFFFC"),
        (preset("dbcache"), "decides while sampling"),
        (by_halves(), "some steps by half"),
        (preset("rfc"), "no magnitude"),
    ],
)
def test_what_cannot_be_exported_is_named(policy: Any, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        export_profile(policy, TAYLORSEER, steps=12)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"interval": 3}, "it takes cache_interval"),
        ({"cache_interval": 0}, "cache_interval"),
        ({"cache_identifiers": ["x"]}, "leave the identifiers out"),
        ({"disable_cache_before_step": 0}, "first step"),
    ],
)
def test_what_cannot_be_imported_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        import_settings(values, TAYLORSEER, 12)


def test_taylorseer_needs_the_number_of_steps() -> None:
    with pytest.raises(PolicyError, match="--num-inference-steps"):
        import_settings({}, TAYLORSEER)


@pytest.mark.parametrize(
    "values",
    [{}, {"threshold": 0.24, "max_skip_steps": 5, "retention_ratio": 0.1}, {"num_inference_steps": 50}],
)
def test_magcache_skips_what_diffusers_skips(values: dict[str, Any]) -> None:
    from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS, MagCacheConfig

    ratios = [float(r) for r in FLUX_MAG_RATIOS]
    profile = import_settings({"mag_ratios": ratios, **values}, "diffusers-magcache").policy.profile()
    assert values or import_settings(ratios, "diffusers-magcache").policy.profile() == profile
    config = MagCacheConfig(mag_ratios=ratios, **values)
    letters, product, error, skipped = "", 1.0, 0.0, 0
    for step, ratio in enumerate(config.mag_ratios.tolist()):
        skip = False
        if step >= int(config.retention_ratio * config.num_inference_steps + 0.5):
            product, skipped = product * ratio, skipped + 1
            error += abs(1 - product)
            skip = step > 0 and error <= config.threshold and skipped <= config.max_skip_steps
            product, error, skipped = (product, error, skipped) if skip else (1.0, 0.0, 0)
        letters += "F" if skip else "C"
    assert isinstance(profile.gate, Fixed) and profile.gate.mask == letters
    assert profile.units == Stack() and profile.forecaster.rows == Reuse() and "F" in letters


def test_magcache_without_ratios_is_refused() -> None:
    with pytest.raises(PolicyError, match="mag_ratios"):
        import_settings({"threshold": 0.1}, "diffusers-magcache")


def test_first_block_cache() -> None:
    found = import_settings({"threshold": 0.12}, "diffusers-firstblock").policy
    assert found == preset("fbcache", threshold=0.12)
    assert import_settings({}, "diffusers-firstblock").policy == preset("fbcache", threshold=0.05)
