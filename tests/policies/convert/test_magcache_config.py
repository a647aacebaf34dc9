"""Schedules written as diffusers' MagCacheConfig: its own hook computes the same steps, and draws the same pictures."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import sample_flux, tiny_flux

from cachesmith.policies import Fixed, Forecaster, PolicyError, Profile, Reuse, Stack, preset
from cachesmith.policies.convert import export_profile, import_settings
from cachesmith.policies.policy import Policy, unbound
from cachesmith.runtime import apply

FORMAT = "diffusers-magcache"


def reusing(mask: str) -> Policy:
    return unbound(Profile(units=Stack(), gate=Fixed(mask=mask), forecaster=Forecaster(rows=Reuse())), {})


@settings(deadline=None)
@given(st.text("CF", max_size=40))
def test_every_schedule_there_and_back_again(rest: str) -> None:
    policy = reusing(f"C{rest}")
    values, _ = export_profile(policy, FORMAT)
    back = import_settings(values, FORMAT).policy.profile()
    assert back == policy.profile()


def test_diffusers_draws_the_same_pictures() -> None:
    from diffusers import MagCacheConfig

    policy = reusing("CCFFCFCFFF")
    values, notes = export_profile(policy, FORMAT)
    pipe, plain = tiny_flux(), sample_flux(tiny_flux())
    with apply(pipe, policy) as session:
        ours = sample_flux(pipe)
    calls: list[int] = []
    pipe.transformer.enable_cache(MagCacheConfig(**values))
    block: Any = pipe.transformer.single_transformer_blocks[0].attn
    handle = block.register_forward_hook(lambda *_: calls.append(1))
    theirs = sample_flux(pipe)
    handle.remove()
    assert len(calls) == 4 == session.stats.nfc
    assert abs(ours - theirs).max() < 1e-5 < 1e-4 < abs(ours - plain).max()
    assert "not measured" in notes[0]


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (preset("taylorseer-lite", order=1), "--order 0"),
        (preset("fora"), "skips all blocks together"),
        (preset("teacache", threshold=0.2), "decides while sampling"),
    ],
)
def test_what_cannot_be_exported_is_named(policy: Policy, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        export_profile(policy, FORMAT, steps=12)
