"""Every key of a policy against every action for a difference."""

import warnings
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tests.runtime.plan.test_plan import fitted
from tests.tiny import Pipeline, policy, sample_dit, sample_flux, tiny_dit
from torch import nn

from cachesmith.policies import (
    Fixed,
    Mismatch,
    ModelKey,
    PolicyError,
    SamplerKey,
    Segments,
    Stack,
    Taylor,
    remap,
)
from cachesmith.runtime import apply
from cachesmith.runtime.models.fingerprint import model_key, sampler_key, weights_hash
from cachesmith.runtime.models.sampler import noise_levels

MASK = "CCFFCFFCFF"
ACTIONS = ["error", "warn", "remap", "disable"]


def keys(pipe: Pipeline, steps: int = 10, guidance: str = "none") -> tuple[ModelKey, SamplerKey]:
    pipe.scheduler.set_timesteps(steps)
    return model_key(pipe.transformer, pipe), sampler_key(pipe.scheduler, guidance)


def with_lora(pipe: Pipeline) -> Pipeline:
    pipe.transformer.peft_config = {"style": object()}
    return pipe


def other_scheduler(pipe: Pipeline) -> Pipeline:
    pipe.scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    return pipe


def other_betas(pipe: Pipeline) -> Pipeline:
    pipe.scheduler = diffusers.DDIMScheduler(beta_end=0.04)
    return pipe


def wider(pipe: Pipeline) -> Pipeline:
    pipe.transformer.register_to_config(norm_eps=1e-4)
    return pipe


def other_weights(pipe: Pipeline) -> Pipeline:
    with torch.no_grad():
        pipe.transformer.proj_out_2.weight.mul_(1.1)
    return pipe


CHANGES = {
    "config": wider,
    "weights": other_weights,
    "adapters": with_lora,
    "scheduler": other_scheduler,
    "sigmas": other_betas,
}


def outcome(pipe: Pipeline, chosen: Any, sample: Any = sample_dit, **kwargs: Any) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with apply(pipe, chosen) as session:
                sample(pipe, **({"steps": 10} | kwargs))
        except PolicyError as error:
            assert "mismatch." in str(error)
            return "error"
    caught = [w for w in caught if issubclass(w.category, RuntimeWarning)]
    used = "used" if session.stats.forecast else "disabled"
    return f"{used}, {len(caught)} warning" if caught else used


def test_a_policy_of_this_very_model_fits(dit: Pipeline) -> None:
    model, sampler = keys(dit)
    assert outcome(dit, policy(Stack(), Fixed(mask=MASK), model=model, sampler=sampler)) == "used"


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("key", CHANGES)
def test_a_difference_is_acted_on(dit: Pipeline, key: str, action: str) -> None:
    model, sampler = keys(dit)
    actions = Mismatch(**{key: action})  # type: ignore[arg-type]
    chosen = policy(Stack(), Fixed(mask=MASK), model=model, sampler=sampler, mismatch=actions)
    expected = {
        "error": "error",
        "warn": "used, 1 warning",
        "remap": "error",
        "disable": "disabled, 1 warning",
    }
    if key == "sigmas":
        expected["remap"] = "used"
    assert outcome(CHANGES[key](dit), chosen) == expected[action]


def test_a_policy_that_is_disabled_for_another_model_needs_no_units(dit: Pipeline, flux: Pipeline) -> None:
    """Segments that this model has not got are no reason to raise when caching is to be off."""
    model, _ = keys(dit)
    off = Mismatch(model="disable", config="warn", weights="warn")
    larger = model.model_copy(update={"blocks": 60})
    chosen = policy(Segments(starts=(0, 40)), Fixed(mask=MASK), model=larger, mismatch=off)
    assert outcome(flux, chosen, sample_flux) == "disabled, 3 warning"


def test_weights_that_cannot_be_read_are_not_compared(dit: Pipeline) -> None:
    model, sampler = keys(dit)
    chosen = policy(
        Stack(), Fixed(mask=MASK), model=model, sampler=sampler, mismatch=Mismatch(weights="error")
    )
    norm = dit.transformer.transformer_blocks[0].norm1
    norm.register_parameter("away", torch.nn.Parameter(torch.empty(1, device="meta")))
    assert outcome(dit, chosen) == "used"


@pytest.mark.parametrize("action", ACTIONS)
def test_another_model(dit: Pipeline, flux: Pipeline, action: Any) -> None:
    model, _ = keys(dit)
    quiet = {"config": "warn", "weights": "warn"}
    chosen = policy(Stack(), Fixed(mask=MASK), model=model, mismatch=Mismatch(model=action, **quiet))  # type: ignore[arg-type]
    expected = {
        "error": "error",
        "warn": "used, 3 warning",
        "remap": "error",
        "disable": "disabled, 3 warning",
    }
    assert outcome(flux, chosen, sample_flux) == expected[action]
    assert outcome(flux, policy(Stack(), Fixed(mask=MASK), model=model), sample_flux) == "error"


@pytest.mark.parametrize("action", ACTIONS)
def test_another_number_of_steps(dit: Pipeline, action: Any) -> None:
    model, sampler = keys(dit)
    chosen = policy(Stack(), Fixed(mask=MASK), model=model, sampler=sampler, mismatch=Mismatch(steps=action))
    if action == "warn":  # a mask cannot be used for another number of steps
        with (
            pytest.warns(RuntimeWarning),
            pytest.raises(PolicyError, match="10 letters for 20 steps"),
            apply(dit, chosen),
        ):
            sample_dit(dit, steps=20)
        return
    expected = {"error": "error", "remap": "used", "disable": "disabled, 1 warning"}
    assert outcome(dit, chosen, steps=20) == expected[action]


@pytest.mark.parametrize("steps", [8, 10, 17, 40])
def test_masks_are_remapped_by_noise_level(dit: Pipeline, steps: int) -> None:
    model, sampler = keys(dit)
    with apply(dit, policy(Stack(), Fixed(mask=MASK), model=model, sampler=sampler)) as session:
        sample_dit(dit, steps=steps)
    assert session.plan is not None
    assert session.plan.masks["stack"] == remap(MASK, sampler.sigmas, noise_levels(dit.scheduler))
    assert len(session.stats.trace) == steps


def test_fitted_weights_take_no_other_number_of_steps(dit: Pipeline) -> None:
    model, sampler = keys(dit)
    chosen = fitted(Fixed(mask=MASK), MASK, model=model, sampler=sampler)
    assert outcome(dit, chosen) == "used"
    with pytest.raises(PolicyError, match="10 letters for 20 steps"), apply(dit, chosen):
        sample_dit(dit, steps=20)


def test_fitted_weights_at_other_noise_levels_are_announced(dit: Pipeline) -> None:
    model, sampler = keys(dit)
    chosen = fitted(Fixed(mask=MASK), MASK, model=model, sampler=sampler)
    other_betas(dit)
    with pytest.warns(RuntimeWarning, match="fitted for"), apply(dit, chosen) as session:
        sample_dit(dit, steps=10)
    assert session.stats.nfc == MASK.count("C")


@pytest.mark.parametrize(
    ("action", "expected"),
    [("disable", "disabled, 1 warning"), ("warn", "used, 1 warning"), ("error", "error")],
)
def test_few_steps(dit: Pipeline, action: Any, expected: str) -> None:
    chosen = policy(Stack(), rows=Taylor(), mismatch=Mismatch(few_steps=action))
    assert outcome(dit, chosen, steps=7) == expected


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(("fitted_for", "scale"), [("none", 2.0), ("batched", 2.0), ("sequential", 1.0)])
def test_other_guidance(flux: Pipeline, fitted_for: str, scale: float, action: Any) -> None:
    model, sampler = keys_of_flux(flux, fitted_for)
    chosen = policy(
        Stack(), Fixed(mask=MASK), model=model, sampler=sampler, mismatch=Mismatch(guidance=action)
    )
    expected = {
        "error": "error",
        "warn": "used, 1 warning",
        "remap": "error",
        "disable": "disabled, 1 warning",
    }
    assert outcome(flux, chosen, sample_flux, true_cfg_scale=scale) == expected[action]


@pytest.mark.parametrize(("fitted_for", "scale"), [("none", 1.0), ("batched", 1.0), ("sequential", 2.0)])
def test_the_same_guidance(flux: Pipeline, fitted_for: str, scale: float) -> None:
    model, sampler = keys_of_flux(flux, fitted_for)
    chosen = policy(Stack(), Fixed(mask=MASK), model=model, sampler=sampler)
    assert outcome(flux, chosen, sample_flux, true_cfg_scale=scale) == "used"


def keys_of_flux(flux: Pipeline, guidance: str) -> tuple[ModelKey, SamplerKey]:
    flux.scheduler.set_timesteps(sigmas=np.linspace(1, 0.1, 10))
    return model_key(flux.transformer, flux), sampler_key(flux.scheduler, guidance)


def test_disabling_gives_the_uncached_picture(dit: Pipeline) -> None:
    model, sampler = keys(dit)
    chosen = policy(
        Stack(), Fixed(mask=MASK), model=model, sampler=sampler, mismatch=Mismatch(sigmas="disable")
    )
    expected = sample_dit(other_betas(dit), steps=10)
    with pytest.warns(RuntimeWarning, match="caching is off"), apply(dit, chosen):
        assert np.array_equal(sample_dit(dit, steps=10), expected)


def test_weights_hash() -> None:
    model = tiny_dit().transformer
    original = weights_hash(model)
    assert original == weights_hash(tiny_dit().transformer) != weights_hash(tiny_dit(1).transformer)
    model.transformer_blocks[1].compile(backend="eager")
    model.transformer_blocks[0] = torch.compile(model.transformer_blocks[0], backend="eager")
    assert weights_hash(model) == original
    assert weights_hash(nn.Linear(2, 2, device="meta")) is None


@pytest.mark.parametrize("action", ["error", "warn", "disable"])
def test_a_guidance_scale_out_of_range(flux: Pipeline, action: Any) -> None:
    model, sampler = flux_keys(flux)
    sampler = sampler.model_copy(update={"guidance_range": (3.5, 4.0)})
    chosen = policy(model=model, sampler=sampler, mismatch=Mismatch(guidance=action))
    assert outcome(flux, chosen, sample_flux, guidance_scale=3.7) == "used"
    expected = {"error": "error", "warn": "used, 1 warning", "disable": "disabled, 1 warning"}
    assert outcome(flux, chosen, sample_flux, guidance_scale=5.0) == expected[action]


def flux_keys(pipe: Pipeline) -> tuple[ModelKey, SamplerKey]:
    """A FLUX pipeline sets its own noise levels, so it has to sample once."""
    sample_flux(pipe)
    return model_key(pipe.transformer, pipe), sampler_key(pipe.scheduler, "none")
