"""Decisions that are settled before the loop, and weights that hold for planned steps only."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import Pipeline, policy, sample_dit

from cachesmith.policies import (
    Clusters,
    Correction,
    Ema,
    Fitted,
    Fixed,
    Forecaster,
    Interval,
    Modules,
    Observed,
    PolicyError,
    Relational,
    Segments,
    Stack,
    Subspace,
    Taylor,
    mask,
)
from cachesmith.policies.rows import forecast_weights
from cachesmith.runtime import Compute, Forecast, apply, compile_plan, resolve_units
from cachesmith.runtime.plan.plan import UNPLANNED

MASK = "CCFCFFFCFF"


def taylor_table(letters: str, order: int, lanes: int = 1) -> np.ndarray:
    """Taylor's weights for every forecast step, as calibration would store fitted ones."""
    table = np.zeros((lanes, len(letters), order + 1), np.float32)
    for step, letter in enumerate(letters):
        past = [float(s) for s in reversed(range(step)) if letters[s] == "C"][: order + 1]
        if letter == "F":
            row = forecast_weights(Taylor(order=order), past, float(step))
            table[:, step, : len(row)] = row
    return table


def fitted(gate: Any, letters: str, order: int = 1, **document: Any) -> Any:
    return policy(Stack(), gate, Fitted(weights="w"), {"w": taylor_table(letters, order)}, **document)


def test_decisions(dit: Pipeline) -> None:
    chosen = policy(Modules(), Fixed(mask=MASK, groups={"mlp": "CFFFFCFFFF"}), Taylor(order=1))
    units = resolve_units(dit.transformer, Modules())
    plan = compile_plan(chosen, chosen.profile(), tuple(map(float, range(10))), units)
    attn, mlp = units[:2]
    assert plan.schedule(attn)[3] == Compute()
    assert plan.schedule(mlp)[3] == Forecast(3, (0,), (1.0,))
    assert plan.schedule(attn)[4] == Forecast(4, (3, 1), (1.5, -0.5))
    assert plan.schedule(attn, start=4)[4] == Compute()


@pytest.mark.parametrize("gate", [Fixed(mask=MASK), Interval(interval=3, warmup=2, tail=1)])
@pytest.mark.parametrize("order", [1, 2])
def test_fitted_rows_in_a_whole_run(dit: Pipeline, gate: Any, order: int) -> None:
    with apply(dit, policy(Stack(), gate, Taylor(order=order))) as plain:
        expected = sample_dit(dit, steps=10)
    with apply(dit, fitted(gate, mask(gate, 10), order)) as session:
        got = sample_dit(dit, steps=10)
    assert session.stats.forecast == plain.stats.forecast and not session.stats.fallbacks
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_fitted_rows_need_a_static_gate(dit: Pipeline) -> None:
    chosen = fitted(Relational(thresholds=(0.1,)), MASK)
    with apply(dit, chosen), pytest.raises(PolicyError, match="fitted weights need to know"):
        sample_dit(dit, steps=10)


def test_fitted_rows_need_their_number_of_steps(dit: Pipeline) -> None:
    chosen = fitted(Interval(interval=2), "CF" * 5)
    with (
        apply(dit, chosen),
        pytest.raises(PolicyError, match="fitted for 10 steps but the sampler visits 12"),
    ):
        sample_dit(dit, steps=12)


@pytest.mark.parametrize(
    ("parts", "arrays"),
    [
        ({"rows": Fitted(weights="a")}, np.ones((3, 10, 2), np.float32)),
        ({"rows": Clusters(ids="a", rows=(Taylor(),))}, np.zeros((3, 32), np.int32)),
        ({"rows": Clusters(ids="a", rows=(Ema(),))}, np.zeros((3, 32), np.int32)),
        ({"subspace": Subspace(basis="a")}, np.eye(32, 4, dtype=np.float32)[None].repeat(3, 0)),
        ({"correction": Correction(offsets="a")}, np.ones((3, 10, 32), np.float32)),
    ],
)
def test_arrays_must_cover_every_lane(dit: Pipeline, parts: Any, arrays: np.ndarray) -> None:
    chosen = policy(Modules(), Interval(interval=2), arrays={"a": arrays}, **parts)
    with apply(dit, chosen), pytest.raises(PolicyError, match="covers 3 lanes"):
        sample_dit(dit, steps=10)


def loop(dit: Pipeline, start: int, spoil: int | None = None) -> list[torch.Tensor]:
    """Ten steps from `start` on; at `spoil` the input is infinite, so that step's output is of no use."""
    dit.scheduler.set_timesteps(10)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = []
    for step, t in list(enumerate(dit.scheduler.timesteps))[start:]:
        factor = float("inf") if step == spoil else 1 + step / 10
        with torch.no_grad():
            outputs.append(dit.transformer(x * factor, t[None], class_labels=torch.tensor([1])).sample)
    return outputs


@pytest.mark.parametrize("gate", [Fixed(mask="CFFCFFCFFF"), Interval(interval=3)])
def test_fitted_rows_after_a_start_in_the_middle(dit: Pipeline, gate: Any) -> None:
    """Until the planned steps are there, everything is computed; then the weights hold again."""
    letters = mask(gate, 10)
    with (
        pytest.warns(RuntimeWarning, match="fitted weights do not cover"),
        apply(dit, fitted(gate, letters)) as session,
    ):
        loop(dit, start=2)
    # 2, 4 and 5 lack step 0; 3 and 6 are computed as planned, and the rest is forecast from them
    assert session.stats.fallbacks == {UNPLANNED.why: 3}
    assert session.stats.forecast["stack"] == letters[7:].count("F")


def test_fitted_rows_after_a_failed_step(dit: Pipeline) -> None:
    letters = "CFFCFFCFFF"
    with pytest.warns(RuntimeWarning), apply(dit, fitted(Fixed(mask=letters), letters)) as session:
        outputs = loop(dit, start=0, spoil=3)
    # without step 3 the steps 4, 5, 7, 8, 9 lack a planned source
    assert session.stats.forecast["stack"] == 2 and session.stats.fallbacks[UNPLANNED.why or ""] == 5
    assert all(o.isfinite().all() for i, o in enumerate(outputs) if i != 3)


def test_segments_beyond_the_model(dit: Pipeline) -> None:
    chosen = policy(Segments(starts=(0, 7)))
    with pytest.raises(PolicyError, match="starts at block 7, but the model has 4"), apply(dit, chosen):
        pass


def test_overrides_by_group(dit: Pipeline) -> None:
    chosen = policy(Modules(), Interval(interval=4), Taylor(order=1))
    document = chosen.document
    profile = document.profiles["default"].model_copy(
        update={"overrides": {"mlp": Forecaster(rows=Taylor(order=2), magnitude=Observed())}}
    )
    chosen = type(chosen)(document.model_copy(update={"profiles": {"default": profile}}))
    with apply(dit, chosen) as session:
        sample_dit(dit)
    assert session.plan is not None
    assert Counter(session.plan.taps(u) for u in session.plan.units) == {2: 4, 3: 4}
    assert Counter(session.plan.input_taps(u) for u in session.plan.units) == {0: 4, 1: 4}


def corrected(gate: Any, steps: int = 10, value: float = 0.0) -> Any:
    offsets = {"c": np.full((1, steps, 32), value, np.float32)}
    return policy(Stack(), gate, Taylor(order=1), offsets, correction=Correction(offsets="c"))


def test_a_correction_of_zero_changes_nothing(dit: Pipeline) -> None:
    gate = Interval(interval=3, warmup=2)
    with apply(dit, policy(Stack(), gate, Taylor(order=1))) as plain:
        expected = sample_dit(dit, steps=10)
    with apply(dit, corrected(gate)) as session:
        assert np.array_equal(sample_dit(dit, steps=10), expected)
    offsets = 10 * 32 * 4
    assert session.stats.cache_bytes == plain.stats.cache_bytes + offsets and not session.stats.fallbacks
    with apply(dit, corrected(gate, value=0.1)):
        assert not np.array_equal(sample_dit(dit, steps=10), expected)


def test_a_correction_belongs_to_its_schedule(dit: Pipeline) -> None:
    with (
        apply(dit, corrected(Relational(thresholds=(0.1,)))),
        pytest.raises(PolicyError, match="fitted weights need to know"),
    ):
        sample_dit(dit, steps=10)
    with (
        apply(dit, corrected(Interval(interval=2))),
        pytest.raises(PolicyError, match="offsets 'c' are fitted for 10 steps but the sampler visits 12"),
    ):
        sample_dit(dit, steps=12)
    with pytest.warns(RuntimeWarning), apply(dit, corrected(Fixed(mask="CFFCFFCFFF"))) as session:
        loop(dit, start=2)
    assert session.stats.fallbacks == {UNPLANNED.why: 3}
