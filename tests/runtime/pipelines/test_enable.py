"""A policy for the life of a server: enabled, switched between requests, disabled."""

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny import Pipeline, sample_dit, sample_flux, tiny_dit

import cachesmith
from cachesmith.policies import Document, Interval, Modules, Policy, PolicyError, Profile, Stack, save
from cachesmith.runtime import apply


def two_profiles() -> Policy:
    slow = Profile(units=Modules(), gate=Interval(interval=2))
    fast = Profile(units=Stack(), gate=Interval(interval=5))
    return Policy(Document(name="two", profiles={"balanced": slow, "fast": fast}), {})


def under(pipe: Pipeline, profile: str) -> Any:
    with apply(pipe, two_profiles(), profile):
        return sample_dit(pipe)


def test_enabled_is_applied(dit: Pipeline) -> None:
    plain, cached = sample_dit(dit), under(dit, "fast")
    session = cachesmith.enable(dit, two_profiles(), profile="fast")
    assert np.array_equal(sample_dit(dit), cached) and np.array_equal(sample_dit(dit), cached)
    assert session.stats.nfc == pytest.approx(3)
    cachesmith.disable(dit)
    assert np.array_equal(sample_dit(dit), plain)
    cachesmith.disable(dit)


def test_a_policy_may_be_named(dit: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cached = tmp_path / "two.policy.safetensors", under(dit, "fast")
    save(two_profiles(), file)
    for name in (file, str(file), "user/two"):
        monkeypatch.setattr("cachesmith.policies.file.io.download", lambda *_: file)
        with apply(dit, name, "fast"):
            assert np.array_equal(sample_dit(dit), cached)
        cachesmith.enable(dit, name, profile="fast")
        assert np.array_equal(sample_dit(dit), cached)
        cachesmith.disable(dit)


def test_twice_is_refused_and_once_more_after_disabling_is_not(dit: Pipeline) -> None:
    cachesmith.enable(dit, two_profiles())
    with pytest.raises(PolicyError, match=r"cachesmith\.disable\(pipe\) first"):
        cachesmith.enable(dit, two_profiles())
    cachesmith.disable(dit)
    cachesmith.enable(dit, two_profiles())
    cachesmith.disable(dit)


def test_a_refused_policy_leaves_nothing_behind(dit: Pipeline) -> None:
    plain = sample_dit(dit)
    with pytest.raises(PolicyError, match="no profile"):
        cachesmith.enable(dit, two_profiles(), profile="none")
    assert np.array_equal(sample_dit(dit), plain)
    cachesmith.enable(dit, two_profiles())
    cachesmith.disable(dit)


def test_profiles_change_between_requests(dit: Pipeline) -> None:
    """Of other units, too: every picture is what it is under its profile alone, and one session tells of all."""
    plain = sample_dit(dit)
    expected = {profile: under(dit, profile) for profile in ("balanced", "fast")}
    with apply(dit, two_profiles()) as session:
        for profile in ("balanced", "fast", "fast", "balanced"):
            session.use(profile)
            assert np.array_equal(sample_dit(dit), expected[profile])
            assert session.plan is not None
        counts = [round(run["0"], 1) for run in session.stats.runs.values()]
        assert counts == [6.0, 3.0, 3.0, 6.0]
    assert np.array_equal(sample_dit(dit), plain)


def test_an_unknown_profile_leaves_the_present_one(dit: Pipeline) -> None:
    expected = under(dit, "fast")
    with apply(dit, two_profiles(), "fast") as session:
        with pytest.raises(PolicyError, match="no profile"):
            session.use("none")
        assert np.array_equal(sample_dit(dit), expected)


def test_another_profile_in_the_middle_of_a_request_is_refused(flux: Pipeline) -> None:
    def change(pipe: Pipeline, step: int, timestep: Any, kwargs: Any) -> Any:
        if step == 4:
            with pytest.raises(PolicyError, match="a request is in progress"):
                session.use("fast")
        return kwargs

    with apply(flux, two_profiles()) as session:
        expected = sample_flux(flux)
        assert np.array_equal(sample_flux(flux, callback_on_step_end=change), expected)
        session.use("fast")
        assert not np.array_equal(sample_flux(flux), expected)


def test_an_enabled_pipeline_that_is_dropped_is_freed() -> None:
    pipe = tiny_dit()
    transformer = weakref.ref(pipe.transformer)
    cachesmith.enable(pipe, two_profiles())
    sample_dit(pipe)
    del pipe
    gc.collect()
    assert transformer() is None


def test_a_copy_of_an_enabled_pipeline_is_not_enabled(dit: Pipeline) -> None:
    plain = sample_dit(dit)
    cachesmith.enable(dit, two_profiles())
    cached, shallow = sample_dit(dit), copy.copy(dit)
    cachesmith.disable(shallow)
    assert np.array_equal(sample_dit(dit), cached) and not np.array_equal(cached, plain)
    for copied in (copy.deepcopy(dit), cachesmith.replicate(dit)):
        assert np.array_equal(sample_dit(copied), plain)
        cachesmith.disable(copied)
        cachesmith.enable(copied, two_profiles())
        cachesmith.disable(copied)
    cachesmith.disable(dit)
    assert np.array_equal(sample_dit(dit), plain)
