"""The size of the cache is known exactly, and can be limited."""

import gc
import weakref
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from tests.tiny import Pipeline, policy, sample_dit, sample_flux

from cachesmith.policies import (
    PRESETS,
    Calibrated,
    Clusters,
    Distance,
    Fixed,
    Interval,
    Modules,
    Observed,
    PolicyError,
    Relational,
    Reuse,
    Segments,
    Stack,
    Taylor,
    preset,
)
from cachesmith.runtime import apply
from cachesmith.runtime.models.fingerprint import sampler_key
from cachesmith.runtime.plan.cache_size import cache_bytes

DIT = {"hidden_states": (4, 16, 32)}  # two samples, guided in one batch
FLUX = {"encoder_hidden_states": (1, 3, 32), "hidden_states": (1, 64, 32)}


@pytest.mark.parametrize("name", PRESETS)
def test_the_plan_tells_the_exact_size(dit: Pipeline, flux: Pipeline, name: str) -> None:
    # a signal is held beside the last computed one only once a step was forecast
    chosen = preset(name, threshold=1e3) if name == "easycache" else preset(name)
    with apply(dit, chosen) as session:
        sample_dit(dit)
    assert session.plan is not None and cache_bytes(session.plan, DIT, 4) == session.stats.cache_bytes
    with apply(flux, chosen) as session:
        sample_flux(flux, steps=12, true_cfg_scale=2.0)
    assert (
        session.plan is not None
        and cache_bytes(session.plan, FLUX, 4, branches=2) == session.stats.cache_bytes
    )


@pytest.mark.parametrize("units", [Stack(), Segments(starts=(0, 2)), Modules()])
@pytest.mark.parametrize("magnitude", [None, Observed(), Calibrated(scales="s")])
@pytest.mark.parametrize(
    "gate",
    [
        Interval(interval=2),
        Relational(thresholds=(0.1,), order=2),
        Distance(threshold=1e3, max_interval=3),
        Distance(signal="input", per="output", threshold=1e3, warmup=2, max_interval=3),
    ],
)
def test_inputs_held_for_two_reasons_are_held_once(
    dit: Pipeline, units: Any, magnitude: Any, gate: Any
) -> None:
    lanes = {"stack": 1, "segment": 2, "module": 8}[units.kind]
    arrays = {"s": np.ones((lanes, 1), np.float32)} if isinstance(magnitude, Calibrated) else {}
    with apply(dit, policy(units, gate, Taylor(order=2), arrays, magnitude=magnitude)) as session:
        sample_dit(dit, steps=12)
    assert session.plan is not None and cache_bytes(session.plan, DIT, 4) == session.stats.cache_bytes


def test_a_budget_refuses_with_the_figure(dit: Pipeline) -> None:
    with apply(dit, preset("rfc")) as session:
        sample_dit(dit)
    needed = session.stats.cache_bytes
    with apply(dit, preset("rfc"), memory_budget=needed):
        sample_dit(dit)
    figure = f"needs {needed:,} bytes but memory_budget is {needed - 1:,}"
    with (
        pytest.raises(PolicyError, match=figure),
        apply(dit, preset("rfc"), memory_budget=needed - 1) as session,
    ):
        sample_dit(dit)
    assert session.stats.cache_bytes == 0


def test_a_budget_counts_the_second_branch(flux: Pipeline) -> None:
    with apply(flux, preset("rfc")) as session:
        sample_flux(flux)
    budget = session.stats.cache_bytes
    with (
        apply(flux, preset("rfc"), memory_budget=budget),
        pytest.raises(PolicyError, match=f"{2 * budget:,} bytes"),
    ):
        sample_flux(flux, true_cfg_scale=2.0)


def test_a_budget_knows_of_guidance_beforehand(flux: Pipeline) -> None:
    flux.scheduler.set_timesteps(sigmas=np.linspace(1, 0.1, 10))
    guided = sampler_key(flux.scheduler, "sequential")
    with apply(flux, policy(Stack(), Interval(interval=2))) as session:
        sample_flux(flux)
    budget = session.stats.cache_bytes
    with (
        pytest.raises(PolicyError, match=f"{2 * budget:,} bytes"),
        apply(flux, policy(Stack(), Interval(interval=2), sampler=guided), memory_budget=budget) as session,
    ):
        sample_flux(flux, true_cfg_scale=2.0)
    assert session.stats.cache_bytes == 0


@pytest.mark.parametrize("interrupted", [False, True])
def test_nothing_outlives_the_context(dit: Pipeline, interrupted: bool) -> None:
    held: list[Any] = []
    with suppress(KeyboardInterrupt), apply(dit, preset("rfc")) as session:
        sample_dit(dit)
        assert session._run is not None
        held.append(weakref.ref(session._run.memory.branches["0"].histories["attn.0"].outputs[0][0]))
        if interrupted:
            raise KeyboardInterrupt
    gc.collect()
    assert held[0]() is None and session.plan is not None and session.stats.nfc > 0


def test_requests_that_a_gate_decides_differently_leave_nothing_behind(dit: Pipeline) -> None:
    pool = Clusters(ids="c", rows=(Taylor(order=1), Taylor(order=2)))
    gate, arrays = Relational(thresholds=(0.02,), order=1), {"c": np.zeros((1, 32), np.int32)}
    with apply(dit, policy(gate=gate, rows=pool, arrays=arrays)) as session:
        for seed in range(4):
            sample_dit(dit, seed=seed, steps=24, labels=(seed, seed + 1))
    assert session.stats.forecast["stack"] > 2
    assert session.plan is not None and cache_bytes(session.plan, DIT, 4) == session.stats.cache_bytes


@pytest.mark.parametrize("mask", ["CHFHCFHFFF", "CFFFCFFFFF", "CCCCCCCCCC", "CHCFFFCHFF"])
@pytest.mark.parametrize("row", [Taylor(order=1), Reuse()])
def test_what_later_calls_follow_is_counted(flux: Pipeline, mask: str, row: Any) -> None:
    chosen = policy(Stack(follower="later"), Fixed(mask=mask), row)
    with apply(flux, chosen) as session:
        sample_flux(flux, true_cfg_scale=2.0)
    assert session.plan is not None and cache_bytes(session.plan, FLUX, 4) == session.stats.cache_bytes


def test_latents_are_not_held_from_request_to_request(flux: Pipeline) -> None:
    held: list[Any] = []
    handle = flux.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: held.append(weakref.ref(kwargs["hidden_states"])), with_kwargs=True
    )
    with apply(flux, policy(Stack(follower="later"), Fixed(mask="CHFHCFHFFF"))):
        sample_flux(flux, true_cfg_scale=2.0)
        gc.collect()
        assert len(held) == 20 and not [each for each in held if each() is not None]
    handle.remove()
