"""Where a forecast cannot be trusted the unit is computed, counted, and warned about once."""

import warnings
from functools import wraps
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import Pipeline, policy, sample_dit, sample_flux
from torch import nn

from cachesmith.policies import (
    Distance,
    Fitted,
    Fixed,
    Interval,
    Modules,
    Observed,
    Probe,
    Relational,
    Segments,
    Stack,
    Taylor,
    preset,
)
from cachesmith.runtime import apply
from cachesmith.runtime.forecast.estimator import Estimator
from cachesmith.runtime.models.fingerprint import sampler_key
from cachesmith.runtime.runs import session as session_module
from cachesmith.runtime.stats import (
    CHANGED_SHAPE,
    NON_FINITE,
    NON_FINITE_OUTPUT,
    NON_FINITE_RUN,
    REPEATED,
    UNEXPECTED,
)

UNITS = [Stack(), Segments(starts=(0, 2)), Modules()]


def spoil(dit: Pipeline, calls: set[int]) -> Any:
    """Make one MLP compute NaN in some of its calls."""
    count = -1

    def hook(_: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return output * float("nan") if count in calls else output

    return dit.transformer.transformer_blocks[1].ff.net[-1].register_forward_hook(hook)


def outputs(dit: Pipeline, batches: tuple[int, ...] = (1,) * 10, size: int = 8) -> list[torch.Tensor]:
    """Run the transformer over ten steps, with that many samples in each."""
    dit.scheduler.set_timesteps(10)
    x = torch.randn(4, 4, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return [
            dit.transformer(
                x[:batch] * (1 + t / 1000), t.expand(batch), class_labels=torch.arange(batch)
            ).sample
            for t, batch in zip(dit.scheduler.timesteps, batches, strict=True)
        ]


@pytest.mark.parametrize("units", UNITS)
def test_a_computed_nan_is_never_forecast_from(dit: Pipeline, units: Any) -> None:
    handle = spoil(dit, {1})
    with (
        pytest.warns(RuntimeWarning, match="computed output was not finite") as warned,
        apply(dit, policy(units, Fixed(mask="CCFFCCFFFF"))) as session,
    ):
        finite = [bool(output.isfinite().all()) for output in outputs(dit)]
    handle.remove()
    assert finite == [True, False] + [True] * 8
    assert session.stats.fallbacks[NON_FINITE_OUTPUT] > 0
    assert len(warned) == 1


@pytest.mark.parametrize(("units", "lanes"), list(zip(UNITS, (1, 2, 8), strict=True)))
def test_a_forecast_that_overflows_is_computed(dit: Pipeline, units: Any, lanes: int) -> None:
    expected = sample_dit(dit, steps=10)
    weights = {"w": np.full((lanes, 10, 2), 3e38, np.float32)}
    wild = policy(units, Fixed(mask="CCFFFFCFFF"), Fitted(weights="w"), weights)
    with pytest.warns(RuntimeWarning, match="forecast was not finite") as warned, apply(dit, wild) as session:
        assert np.array_equal(sample_dit(dit, steps=10), expected)
    assert len(warned) == 1 and session.stats.fallbacks == {NON_FINITE: 7}


def test_on_an_accelerator_the_finished_run_is_distrusted(
    dit: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where looking would stall the stream, it is made up for when the next run begins, or the context is left."""
    monkeypatch.setattr(session_module, "_on_host", lambda _: False)
    weights = {"w": np.full((1, 10, 2), 3e38, np.float32)}
    wild = policy(Stack(), Fixed(mask="CCFFFFCFFF"), Fitted(weights="w"), weights)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with apply(dit, wild) as session:
            sample_dit(dit, steps=10)
            assert not session.stats.fallbacks
            sample_dit(dit, steps=10)
            assert session.stats.fallbacks == {NON_FINITE_RUN: 1}
        assert session.stats.fallbacks == {NON_FINITE_RUN: 2} and session.stats.forecast["stack"] == 14
    assert [w for w in caught if "do not trust its pictures" in str(w.message)]
    with apply(dit, preset("taylorseer")) as session:
        sample_dit(dit, steps=10)
    assert not session.stats.fallbacks


def test_nan_input_passes_through(dit: Pipeline) -> None:
    dit.scheduler.set_timesteps(10)
    x, labels = torch.full((1, 4, 8, 8), float("nan")), torch.tensor([1])
    with pytest.warns(RuntimeWarning), apply(dit, preset("rfc")) as session, torch.no_grad():
        for t in dit.scheduler.timesteps:
            assert dit.transformer(x, t[None], class_labels=labels).sample.isnan().all()
    assert not session.stats.forecast


@pytest.mark.parametrize("gate", [Interval(interval=4, warmup=2), Relational(thresholds=(1e6,))])
@pytest.mark.parametrize("magnitude", [None, Observed()])
@pytest.mark.parametrize("units", UNITS)
def test_a_batch_that_changes_during_a_run(dit: Pipeline, gate: Any, magnitude: Any, units: Any) -> None:
    """Guidance that is switched off halfway halves the batch; a batch of one would even broadcast."""
    batches = (2, 2, 2, 1, 1, 1, 1, 4, 4, 4)
    expected = outputs(dit, batches)
    with (
        pytest.warns(RuntimeWarning, match="changed during a run"),
        apply(dit, policy(units, gate, Taylor(order=2), magnitude=magnitude)) as session,
    ):
        got = outputs(dit, batches)
    assert [o.shape for o in got] == [o.shape for o in expected]
    assert torch.equal(got[3], expected[3]) and torch.equal(got[7], expected[7])
    assert session.stats.fallbacks[CHANGED_SHAPE] >= 2


def test_a_batch_that_changes_at_a_computed_step(dit: Pipeline) -> None:
    """Nothing is refused there, but what was remembered of the old batch must not be combined with the new."""
    batches = (2, 2, 2, 1, 1, 1, 1, 1, 1, 1)
    chosen = policy(Stack(), Fixed(mask="CCCCFFFCCF"), Taylor(order=2), magnitude=Observed())
    with apply(dit, chosen) as session:
        outputs(dit, batches)
    assert session.stats.forecast["stack"] == 4 and not session.stats.fallbacks


def test_a_module_that_returns_more_than_expected(flux: Pipeline) -> None:
    """FLUX's attention returns a third tensor with an IP-adapter: it must not be dropped."""
    attention = flux.transformer.transformer_blocks[0].attn
    plain = attention.forward

    @wraps(plain)
    def with_adapter(*args: Any, **kwargs: Any) -> Any:
        return (*plain(*args, **kwargs), torch.ones_like(kwargs["hidden_states"]))

    attention.forward = with_adapter
    expected = sample_flux(flux)
    with (
        pytest.warns(RuntimeWarning, match="another number of tensors"),
        apply(flux, preset("fora")) as session,
    ):
        got = sample_flux(flux)
    assert session.stats.forecast["attn.0"] == 0 and session.stats.forecast["attn.1"] == 8
    assert session.stats.fallbacks[UNEXPECTED] == 10
    assert not np.array_equal(got, expected)


def test_a_module_that_is_called_for_every_sample(dit: Pipeline) -> None:
    """As `enable_forward_chunking` does: what one call computed must not stand for the next."""
    for block in dit.transformer.transformer_blocks:
        whole = block.ff.forward
        block.ff.forward = lambda x, call=block.ff, whole=whole: whole(x)
        block.set_chunk_feed_forward(1, dim=0)
    expected = sample_dit(dit)
    with pytest.warns(RuntimeWarning, match="several times"), apply(dit, preset("fora")) as session:
        got = sample_dit(dit)
    assert session.stats.forecast["attn.1"] > 0 and session.stats.forecast["mlp.1"] == 0
    assert session.stats.fallbacks[REPEATED] > 0 and not np.array_equal(got, expected)


def test_few_steps_are_not_cached(dit: Pipeline) -> None:
    expected = sample_dit(dit, steps=7)
    with pytest.warns(RuntimeWarning, match="8 or more"), apply(dit, preset("fora")) as session:
        assert np.array_equal(sample_dit(dit, steps=7), expected)
    assert session.stats.nfc == 7 and session.plan is None
    with apply(dit, preset("fora")) as session:
        sample_dit(dit, steps=8)
    assert session.stats.nfc == pytest.approx(2)


def test_a_policy_made_for_few_steps_is_used(dit: Pipeline) -> None:
    """Distilled models sample in 4 to 8 steps; the published methods are shown on them, too."""
    dit.scheduler.set_timesteps(4)
    made = policy(Stack(), Fixed(mask="CCFC"), Taylor(order=1), sampler=sampler_key(dit.scheduler))
    with apply(dit, made) as session:
        sample_dit(dit, steps=4)
    assert session.stats.nfc == 3 and not session.stats.fallbacks
    with pytest.warns(RuntimeWarning, match="8 or more"), apply(dit, made) as session:
        sample_dit(dit, steps=6)
    assert session.stats.nfc == 6


def test_few_steps_in_between_leave_other_requests_alone(dit: Pipeline) -> None:
    with apply(dit, preset("fora")):
        expected = sample_dit(dit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sample_dit(dit, steps=4)
        assert np.array_equal(sample_dit(dit), expected)


@pytest.mark.filterwarnings("ignore:cachesmith computed")
@pytest.mark.parametrize(
    "gate", [Probe(threshold=1e5), Probe(threshold=1e5, place="last"), Distance(threshold=1e5)]
)
def test_a_call_that_is_made_again_is_computed_whatever_the_gate_says(
    dit: Pipeline, monkeypatch: Any, gate: Any
) -> None:
    plain, forecast = sample_dit(dit), Estimator.output

    def spoilt(self: Any, *args: Any) -> Any:
        return tuple(output * torch.nan for output in forecast(self, *args))

    monkeypatch.setattr(Estimator, "output", spoilt)
    with apply(dit, policy(Segments(starts=(0, 2)), gate)) as session:
        assert np.array_equal(sample_dit(dit), plain)
    assert session.stats.fallbacks[NON_FINITE] and not session.stats.fallbacks[NON_FINITE_OUTPUT]
