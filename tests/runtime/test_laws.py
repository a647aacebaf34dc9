"""What must hold whatever the policy: nothing changes where nothing is forecast, and runs never touch each other."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from tests.tiny import Pipeline, policy, sample_dit, sample_flux, tiny_dit, tiny_flux
from torch import nn

from cachesmith.policies import (
    Fixed,
    Interval,
    Modules,
    Observed,
    Policy,
    PolicyError,
    Segments,
    Stack,
    Taylor,
    Units,
    preset,
)
from cachesmith.runtime import apply

GRANULARITIES = [Stack(), Segments(starts=(0, 1, 3)), Modules()]
MODELS = [(tiny_dit, sample_dit), (tiny_flux, sample_flux)]
CACHING = ["taylorseer-lite", "rfc"]


def state(module: nn.Module) -> list[dict[str, Any]]:
    return [
        {k: v if not isinstance(v, dict) else dict(v) for k, v in vars(m).items()} for m in module.modules()
    ]


@pytest.mark.parametrize(("build", "sample"), MODELS)
@pytest.mark.parametrize("units", GRANULARITIES)
@pytest.mark.parametrize("gate", [Interval(interval=1), Fixed(mask="C" * 10)])
def test_computing_everything_changes_nothing(build: Any, sample: Any, units: Units, gate: Any) -> None:
    pipe = build()
    expected = sample(pipe, steps=10)
    with apply(pipe, policy(units, gate, magnitude=Observed())) as session:
        assert np.array_equal(sample(pipe, steps=10), expected)
    assert session.stats.nfc == pytest.approx(10)
    assert not session.stats.forecast and not session.stats.fallbacks


@pytest.mark.parametrize(("build", "sample"), MODELS)
@pytest.mark.parametrize("name", CACHING)
def test_leaving_the_context_undoes_everything(build: Any, sample: Any, name: str) -> None:
    pipe = build()
    expected = sample(pipe)
    before, scheduler = state(pipe.transformer), set(vars(pipe.scheduler))
    with apply(pipe, preset(name)):
        assert not np.array_equal(sample(pipe), expected)
    assert state(pipe.transformer) == before and set(vars(pipe.scheduler)) == scheduler
    assert np.array_equal(sample(pipe), expected)


def interrupt_at(pipe: Pipeline, calls: int) -> Any:
    """Fail inside the last block's MLP."""

    def fail(*_: Any) -> None:
        nonlocal calls
        calls -= 1
        if calls == 0:
            raise KeyboardInterrupt

    return pipe.transformer.transformer_blocks[-1].ff.register_forward_pre_hook(fail)


@pytest.mark.parametrize("name", CACHING)
def test_exception_in_the_pipeline(dit: Pipeline, name: str) -> None:
    expected = sample_dit(dit)
    before = state(dit.transformer)
    handle = interrupt_at(dit, 3)
    with pytest.raises(KeyboardInterrupt), apply(dit, preset(name)):
        sample_dit(dit)
    handle.remove()
    assert state(dit.transformer) == before
    assert np.array_equal(sample_dit(dit), expected)


@pytest.mark.parametrize("name", CACHING)
def test_a_run_after_an_interrupted_one_is_clean(dit: Pipeline, name: str) -> None:
    with apply(dit, preset(name)):
        expected = sample_dit(dit)
    with apply(dit, preset(name)):
        handle = interrupt_at(dit, 3)
        with pytest.raises(KeyboardInterrupt):
            sample_dit(dit, seed=7)
        handle.remove()
        assert np.array_equal(sample_dit(dit), expected)


@pytest.mark.parametrize(("build", "sample"), MODELS)
@pytest.mark.parametrize("name", CACHING)
def test_requests_in_a_row(build: Any, sample: Any, name: str) -> None:
    requests = [{"seed": 1}, {"seed": 2, "steps": 15}, {"seed": 3}, {"seed": 1}]
    alone = []
    for request in requests:
        pipe = build()
        with apply(pipe, preset(name)):
            alone.append(sample(pipe, **request))
    with apply(pipe, preset(name)):
        for request, expected in zip(requests, alone, strict=True):
            assert np.array_equal(sample(pipe, **request), expected)


def test_changed_resolution_and_batch_between_requests(flux: Pipeline) -> None:
    requests = [{"size": 16}, {"size": 24}, {"size": 16, "batch": 2}, {"size": 16, "true_cfg_scale": 2.0}]
    with apply(flux, preset("rfc")) as session:
        together = [sample_flux(flux, **request) for request in requests]  # type: ignore[arg-type]
    for request, image in zip(requests, together, strict=True):
        with apply(flux, preset("rfc")):
            assert np.array_equal(sample_flux(flux, **request), image)  # type: ignore[arg-type]
    assert not session.stats.fallbacks


@pytest.mark.parametrize("name", CACHING)
def test_two_pipelines_at_once(name: str) -> None:
    first, second = tiny_dit(0), tiny_dit(1)
    alone = []
    for pipe in (first, second):
        with apply(pipe, preset(name)):
            alone.append(sample_dit(pipe))
    with apply(first, preset(name)), apply(second, preset(name)):
        assert np.array_equal(sample_dit(second), alone[1])
        assert np.array_equal(sample_dit(first), alone[0])


def test_two_pipelines_sharing_a_scheduler() -> None:
    first, second = tiny_dit(0), tiny_dit(1)
    second.scheduler = first.scheduler
    with apply(second, preset("fora")):
        expected = sample_dit(second)
    with apply(first, preset("fora")), apply(second, preset("fora")):
        sample_dit(first)
        assert np.array_equal(sample_dit(second), expected)


def three_requests(pipe: Pipeline) -> tuple[Any, Any]:
    with apply(pipe, preset("rfc")) as session:
        images = [sample_dit(pipe, seed=s) for s in range(3)]
    return np.stack(images), session.stats.computed


def test_two_threads_with_a_pipeline_each() -> None:
    pipes = [tiny_dit(seed) for seed in (0, 1)]
    alone = [three_requests(pipe) for pipe in pipes]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(three_requests, pipes))
    for (images, computed), (expected, expected_computed) in zip(together, alone, strict=True):
        assert np.array_equal(images, expected) and computed == expected_computed


@pytest.mark.parametrize("name", ["fora", "taylorseer", "taylorseer-lite", "hicache"])
def test_a_static_gate_ignores_the_rest_of_the_batch(dit: Pipeline, name: str) -> None:
    with apply(dit, preset(name)):
        alone = sample_dit(dit, seed=0, labels=(1,))
        batch = sample_dit(dit, seed=0, labels=(1, 2, 3))
    np.testing.assert_allclose(batch[:1], alone, atol=1e-5)


def test_relational_forecasts_ignore_the_rest_of_the_batch(dit: Pipeline) -> None:
    fitted = policy(Modules(), rows=Taylor(order=2), magnitude=Observed())
    with apply(dit, fitted):
        alone = sample_dit(dit, seed=0, labels=(1,))
        batch = sample_dit(dit, seed=0, labels=(1, 2, 3))
    np.testing.assert_allclose(batch[:1], alone, atol=1e-5)


def test_one_policy_at_a_time(dit: Pipeline) -> None:
    with apply(dit, preset("fora")):
        with pytest.raises(PolicyError, match="already runs under a policy"), apply(dit, preset("fora")):
            pass
        sample_dit(dit)


def test_a_bare_transformer_needs_its_scheduler(dit: Pipeline) -> None:
    expected = sample_dit(dit)
    with apply(dit.transformer, preset("uncached"), scheduler=dit.scheduler) as session:
        assert np.array_equal(sample_dit(dit), expected)
    assert session.stats.nfc == 12
    with pytest.raises(PolicyError, match="scheduler="), apply(dit.transformer, preset("fora")):
        pass
    with pytest.raises(PolicyError, match="no `transformer`"), apply(object(), preset("fora")):
        pass


def test_a_replaced_scheduler_is_followed(dit: Pipeline) -> None:
    before, after = dit.scheduler, DDIMScheduler(beta_end=0.04)
    with apply(dit, preset("fora")) as session:
        sample_dit(dit)
        dit.scheduler = after
        picture = sample_dit(dit)
    assert session.stats.nfc == 3 and not {"step", "set_timesteps"} & {*vars(before), *vars(after)}
    with apply(dit, preset("fora")):
        assert np.array_equal(sample_dit(dit), picture)


def test_offloading_may_replace_the_forward(dit: Pipeline) -> None:
    """`enable_model_cpu_offload` puts `forward` back after every pipeline call."""
    with apply(dit, preset("fora")) as session:
        expected = sample_dit(dit)
        dit.transformer.forward = type(dit.transformer).forward.__get__(dit.transformer)
        assert np.array_equal(sample_dit(dit), expected)
    assert session.stats.nfc == pytest.approx(3)


def test_a_block_called_outside_the_transformer_is_computed(dit: Pipeline) -> None:
    block, hidden = dit.transformer.transformer_blocks[0], torch.randn(1, 16, 32)
    extra = {"timestep": torch.tensor([1]), "class_labels": torch.tensor([1])}
    expected = block(hidden, **extra)
    with apply(dit, preset("fora")) as session:
        sample_dit(dit)
        computed = session.stats.computed.copy()
        assert torch.equal(block(hidden, **extra), expected)
    assert session.stats.computed == computed


def test_nested_contexts_of_different_pipelines_leave_in_order() -> None:
    pipes = [tiny_dit(0), tiny_dit(1)]
    before = [state(p.transformer) for p in pipes]
    with ExitStack() as stack:
        for pipe in pipes:
            stack.enter_context(apply(pipe, preset("rfc")))
            sample_dit(pipe)
    assert [state(p.transformer) for p in pipes] == before


def test_an_unknown_profile_is_refused_before_anything_is_touched(dit: Pipeline) -> None:
    before = state(dit.transformer)
    chosen: Policy = preset("fora")
    with pytest.raises(PolicyError, match="no profile"), apply(dit, chosen, profile="missing"):
        pass
    assert state(dit.transformer) == before
