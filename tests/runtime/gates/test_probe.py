"""The probe gate against FirstBlockCache, confidence-gated Taylor and SpeCa written out plainly."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.runtime.gates.test_relational import STEPS, trajectory
from tests.runtime.units import block_run, following, visit
from tests.tiny import Pipeline, policy, sample_dit, sample_flux, tiny_dit, tiny_flux
from torch import Tensor

from cachesmith.policies import (
    Distance,
    Modules,
    Policy,
    PolicyError,
    Probe,
    Reuse,
    Segments,
    Stack,
    Taylor,
    preset,
)
from cachesmith.runtime import Session, Tick, apply, compile_plan, distill
from cachesmith.runtime.runs.memory import Holdings
from cachesmith.runtime.stats import CHANGED_SHAPE, Trace

FIRST = block_run("segment.0", share=0.25)
REST = block_run("segment.1", share=0.75, lane=1)
MODELS = [(tiny_dit, sample_dit), (tiny_flux, sample_flux)]
DYNAMIC = ["teacache", "easycache", "fbcache", "dbcache", "confidence", "speca"]


def run(gate: Probe, residuals: Tensor, order: int = 0) -> Session:
    """A session over a model of two segments; the probe's residuals are given, the other's are zero."""
    chosen = policy(Segments(starts=(0, 1)), gate, Taylor(order=order) if order else Reuse())
    times = tuple(map(float, range(len(residuals))))
    units = (FIRST, REST)
    session = following(lambda start: compile_plan(chosen, chosen.profile(), times, units, start))
    for step, residual in enumerate(residuals):
        x = torch.ones_like(residual)
        session.begin(Tick(1, step, "0"))
        for unit in units:
            is_probe = (unit is FIRST) == (gate.place == "first")
            visit(session, unit, (x,), (x + residual if is_probe else x,))
    return session


def letters(session: Session) -> str:
    return "".join(t.decision for t in session.stats.trace)


def constant(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 5, 4)


def test_first_block_cache_by_hand() -> None:
    """Held against the last computed step, not the last one: 1.05 and 1.09 pass, 1.2 is 0.2 away from 1."""
    session = run(Probe(threshold=0.1), constant(1, 1.05, 1.09, 1.2, 1.25, 0.6))
    assert letters(session) == "CFFCFC"
    demands = [t.measured for t in session.stats.trace]
    assert demands == [None, *(pytest.approx(d, abs=1e-4) for d in (0.05, 0.09, 0.2, 0.05 / 1.2, 0.5))]
    assert session.stats.computed == {"segment.0": 6, "segment.1": 3}
    assert session.stats.nfc == pytest.approx(6 * 0.25 + 3 * 0.75)


def test_confidence_by_hand() -> None:
    """A line is forecast well; the kink at step 5 is not, and neither is what follows until two steps are known."""
    gate = Probe(against="forecast", threshold=0.05, warmup=2)
    session = run(gate, constant(1, 2, 3, 4, 5, 5, 5, 5), order=1)
    assert letters(session) == "CCFFFCCF"
    assert session.stats.trace[5].measured == pytest.approx(1 / 5)
    # from 2 at step 1 and 5 at step 5 step 6 is expected at 5.75
    assert session.stats.trace[6].measured == pytest.approx(0.75 / 5)


def test_speca_by_hand() -> None:
    """The error of a step decides for the next one."""
    gate = Probe(place="last", against="forecast", norm="l2", threshold=0.05, warmup=2)
    session = run(gate, constant(1, 2, 3, 4, 5, 5, 5, 5), order=1)
    assert letters(session) == "CCFFFFCF"
    assert [t.measured for t in session.stats.trace][2:] == [
        *(pytest.approx(d, abs=1e-5) for d in (0, 0, 0, 0, 0.2, 0))
    ]


def test_speca_thresholds_and_limits() -> None:
    wild = constant(*(1.0, 5.0) * 8)
    gate = Probe(place="last", threshold=10, decay=1e-3, floor=0.01, min_interval=4, max_interval=9)
    # steps 1 to 3 are forecast whatever happens, then 10 * 0.001 ** (4 / 16) = 1.78 < 4
    assert letters(run(gate, wild)) == "CFFFC" + "FFFC" * 2 + "FFF"
    calm = constant(*[1.0] * 16)
    assert letters(run(gate, calm)) == "C" + "F" * 8 + "C" + "F" * 6


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("against", ["last", "forecast"])
def test_limiting_thresholds(place: Any, against: Any) -> None:
    path = trajectory(2, 0)
    every = Probe(place=place, against=against, threshold=0.0)
    assert letters(run(every, path, order=1)) == "C" * STEPS
    never = Probe(place=place, against=against, threshold=1e6, max_interval=6, warmup=2, tail=1)
    assert letters(run(never, path, order=1)) == "CC" + "FFFFFC" * 3 + "FFF" + "C"


def test_the_most_demanding_sample_decides() -> None:
    path = trajectory(3, 0)
    gate = Probe(threshold=0.1)
    alone = [letters(run(gate, path[:, i : i + 1])) + "C" for i in range(3)]
    together = letters(run(gate, path))
    assert len(set(alone)) > 1
    assert together.index("C", 1) == min(decided.index("C", 1) for decided in alone) < STEPS


def test_a_value_that_is_not_finite_is_computed() -> None:
    path = trajectory(1, 0).clone()
    path[5] = torch.nan
    with pytest.warns(RuntimeWarning, match="not finite"):
        session = run(Probe(threshold=1e6), path)
    assert letters(session)[5:8] == "CCF"
    with pytest.warns(RuntimeWarning, match="not finite"):
        session = run(Probe(place="last", threshold=1e6), path)
    # the probe has nothing to hold against, so the step after is computed as well
    assert letters(session)[5:9] == "FFCF" or letters(session)[5:9] == "FCFF"


def test_another_shape_is_computed() -> None:
    chosen = policy(Segments(starts=(0, 1)), Probe(threshold=1e6), Reuse())
    session = following(
        lambda s: compile_plan(chosen, chosen.profile(), tuple(map(float, range(5))), (FIRST, REST), s)
    )
    with pytest.warns(RuntimeWarning, match="changed"):
        for step, batch in enumerate((2, 2, 1, 1, 1)):
            x = torch.ones(batch, 5, 4)
            session.begin(Tick(1, step, "0"))
            for unit in (FIRST, REST):
                visit(session, unit, (x,), (2 * x,))
    assert letters(session) == "CFCFF" and session.stats.fallbacks == {CHANGED_SHAPE: 1}


def test_one_unit_is_no_probe(dit: Pipeline) -> None:
    with apply(dit, policy(Stack(), Probe(threshold=0.1))), pytest.raises(PolicyError, match="only one"):
        sample_dit(dit)


def zero(name: str) -> Policy:
    return preset(name, threshold=0, floor=0.0, at_least=0) if name == "speca" else preset(name, threshold=0)


@pytest.mark.parametrize(("build", "sample"), MODELS)
@pytest.mark.parametrize("name", DYNAMIC)
def test_threshold_zero_changes_nothing(build: Any, sample: Any, name: str) -> None:
    pipe = build()
    expected = sample(pipe, steps=10)
    with apply(pipe, zero(name)) as session:
        assert np.array_equal(sample(pipe, steps=10), expected)
    assert session.stats.nfc == pytest.approx(10) and not session.stats.forecast
    assert not session.stats.fallbacks


@pytest.mark.parametrize(("build", "sample"), MODELS)
@pytest.mark.parametrize("name", DYNAMIC)
def test_requests_in_a_row(build: Any, sample: Any, name: str) -> None:
    options = {"threshold": 1e3, "warmup": 3}
    pipe = build()
    alone = []
    for seed in (1, 2):
        with apply(pipe, preset(name, **options)) as session:
            alone.append(sample(pipe, seed=seed))
    assert sum(session.stats.forecast.values()) > 0
    with apply(pipe, preset(name, **options)) as session:
        for seed, expected in zip((1, 2), alone, strict=True):
            assert np.array_equal(sample(pipe, seed=seed), expected)
    assert not session.stats.fallbacks


def test_branches_decide_for_themselves(flux: Pipeline) -> None:
    with apply(flux, preset("fbcache", threshold=1e-3)) as session:
        sample_flux(flux, true_cfg_scale=2.0)
    branches = {t.branch for t in session.stats.trace}
    assert len(branches) == 2 and len(session.stats.trace) == 20


def test_probes_and_modules(dit: Pipeline) -> None:
    """The first attention alone may be the probe."""
    with apply(dit, policy(Modules(), Probe(threshold=1e6), Reuse())) as session:
        sample_dit(dit)
    assert session.stats.computed["attn.0"] == 12 and session.stats.computed["mlp.0"] == 1


def test_distilled() -> None:
    def trace(*decided: str) -> list[Trace]:
        return [
            Trace(run, step, "0", letter, None)
            for run, letters in enumerate(decided)
            for step, letter in enumerate(letters)
        ]

    assert distill(trace("CFFCFC"), 6).mask == "CFFCFC"
    assert distill(trace("CFCFFF", "CFFCFF", "CFFFCF"), 6).mask == "CFFCFF"
    assert distill(trace("CCCCCC", "CFFFFF"), 6).mask.count("C") == 4
    with pytest.raises(ValueError, match="has step 5, but the schedule is for 5"):
        distill(trace("CFFCFC"), 5)
    with pytest.raises(ValueError, match="no trace"):
        distill([], 5)


def test_a_distilled_gate_does_the_same(dit: Pipeline) -> None:
    chosen = policy(Stack(), Distance(threshold=0.1), Taylor(order=1))
    with apply(dit, chosen) as session:
        expected = sample_dit(dit)
    fixed = distill(session.stats.trace, 12)
    with apply(dit, policy(Stack(), fixed, Taylor(order=1))):
        assert np.array_equal(sample_dit(dit), expected)


def test_bytes_are_counted_once() -> None:
    a, b, c = torch.zeros(4), torch.zeros(8), torch.zeros(16)
    ledger = Holdings()
    ledger.swap([], [a, b])
    ledger.swap([], [b, c])
    assert ledger.bytes == 4 * 28
    ledger.swap([a, b], [c])
    assert ledger.bytes == 4 * 24
    ledger.swap([b, c], [])
    ledger.swap([c], [])
    assert (ledger.bytes, ledger.peak) == (0, 4 * 28)


@pytest.mark.parametrize(
    ("starts", "blocks", "expected"),
    [((0, -1), 4, (0, 3)), ((0, 1, -2, -1), 6, (0, 1, 4, 5)), ((0, 2), 3, (0, 2))],
)
def test_starts_from_the_end(starts: Any, blocks: int, expected: Any) -> None:
    assert Segments(starts=starts).resolved(blocks) == expected


@pytest.mark.parametrize(
    ("starts", "message"), [((0, 4), "starts at block 4"), ((0, -4), "block -4"), ((0, 3, -1), "must ascend")]
)
def test_starts_that_do_not_fit(starts: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        Segments(starts=starts).resolved(4)


@pytest.mark.parametrize("starts", [(0, -1, 2), (0, -1, -2), (-1,), (0, 0)])
def test_starts_out_of_order_are_refused(starts: Any) -> None:
    with pytest.raises(ValueError, match="must ascend from 0"):
        Segments(starts=starts)


def test_the_forecast_of_a_probe_needs_its_taps_only_where_it_is_used(dit: Pipeline) -> None:
    taps = {}
    ways: Any = ("last", "forecast")
    for against in ways:
        gate = Probe(against=against, threshold=0.1)
        with apply(dit, policy(Segments(starts=(0, 1)), gate, Taylor(order=2))) as session:
            sample_dit(dit)
        assert session.plan is not None
        taps[against] = [session.plan.taps(u) for u in session.plan.units]
    assert taps == {"last": [1, 3], "forecast": [3, 3]}
