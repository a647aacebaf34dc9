"""What every gate that decides while sampling must do. A new gate is one entry in `GATES_BY_THRESHOLD`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.runtime.operations import WAITING, Operations
from tests.runtime.units import block_run, following, visit
from tests.tiny import policy

from cachesmith.policies import Distance, DynamicGate, Probe, Relational, Segments, Taylor
from cachesmith.runtime import Session, Tick, compile_plan
from cachesmith.runtime.gates import GATES
from cachesmith.runtime.plan.cache_size import cache_bytes

STEPS = 16
UNITS = (block_run("segment.0", share=0.25), block_run("segment.1", share=0.75, lane=1))
LIMITS: dict[str, Any] = {"warmup": 3, "tail": 2, "max_interval": 6}
GATES_BY_THRESHOLD: dict[str, Callable[..., DynamicGate]] = {
    "relational": lambda t, **limits: Relational(thresholds=(t,), **limits),
    "distance": lambda t, **limits: Distance(signal="input", threshold=t, **limits),
    "distance to the output": lambda t, **limits: Distance(
        signal="input", per="output", threshold=t, **limits
    ),
    "probe": lambda t, **limits: Probe(threshold=t, **limits),
    "probe of the forecast": lambda t, **limits: Probe(against="forecast", threshold=t, **limits),
    "last probe": lambda t, **limits: Probe(
        place="last", against="forecast", threshold=t, floor=0.0, **limits
    ),
}
every_gate = pytest.mark.parametrize("name", GATES_BY_THRESHOLD)


def path(batch: int = 1, steps: int = STEPS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3, batch, 5, 4, generator=generator)
    t = torch.linspace(0, 1, steps)[:, None, None, None]
    speed = torch.linspace(0.3, 1.5, batch)[:, None, None]
    inputs: torch.Tensor = base[0] + speed * (t * base[1] + torch.sin(6 * t) * base[2])
    return inputs


def session(gate: DynamicGate, steps: int = STEPS) -> Session:
    chosen = policy(Segments(starts=(0, 1)), gate, Taylor(order=1))
    times = tuple(map(float, range(steps)))
    return following(lambda start: compile_plan(chosen, chosen.profile(), times, UNITS, start))


def step(under: Session, number: int, x: torch.Tensor, branch: str = "0", run: int = 1) -> None:
    under.begin(Tick(run, number, branch))
    for unit in UNITS:
        visit(under, unit, (x,), (x + torch.sin(2 * x),))


def decisions(gate: DynamicGate, inputs: torch.Tensor) -> str:
    under = session(gate, len(inputs))
    for number, x in enumerate(inputs):
        step(under, number, x)
    return "".join(trace.decision for trace in under.stats.trace)


def test_every_gate_is_here() -> None:
    assert {type(make(0.1)) for make in GATES_BY_THRESHOLD.values()} == set(GATES)


@every_gate
def test_a_threshold_of_nothing_computes_everything(name: str) -> None:
    assert decisions(GATES_BY_THRESHOLD[name](0.0), path()) == "C" * STEPS


@every_gate
def test_limits_hold_whatever_is_measured(name: str) -> None:
    """Warm-up, the longest interval and the tail are computed though the threshold would let all pass."""
    assert decisions(GATES_BY_THRESHOLD[name](1e6, **LIMITS), path()) == "CCCFFFFFCFFFFFCC"


@every_gate
def test_a_larger_threshold_computes_no_more(name: str) -> None:
    counts = [
        decisions(GATES_BY_THRESHOLD[name](threshold), path()).count("C")
        for threshold in (0.0, 0.05, 0.5, 1e6)
    ]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


@every_gate
def test_the_first_decision_is_the_most_demanding_samples(name: str) -> None:
    """A batch is computed where one of its samples would be: never later than each alone."""
    inputs, gate = path(3), GATES_BY_THRESHOLD[name](0.3, warmup=3)
    alone = [(decisions(gate, inputs[:, i : i + 1]) + "C").index("C", 3) for i in range(3)]
    assert (decisions(gate, inputs) + "C").index("C", 3) == min(alone)


@every_gate
def test_branches_and_runs_do_not_see_each_other(name: str) -> None:
    gate, inputs = GATES_BY_THRESHOLD[name](0.2), path(2)
    under = session(gate)
    for run in (1, 2):
        for number in range(STEPS):
            step(under, number, inputs[number, :1], "a", run)
            step(under, number, inputs[number, 1:], "b", run)
    for run in (1, 2):
        for branch, part in (("a", slice(1)), ("b", slice(1, None))):
            together = [t.decision for t in under.stats.trace if (t.run, t.branch) == (run, branch)]
            assert "".join(together) == decisions(gate, inputs[:, part])


@every_gate
def test_what_it_holds_is_what_it_announces(name: str) -> None:
    under, inputs = session(GATES_BY_THRESHOLD[name](1e6, **LIMITS)), path(2)
    for number, x in enumerate(inputs):
        step(under, number, x)
    assert under.plan is not None
    assert cache_bytes(under.plan, {"hidden_states": (2, 5, 4)}, 4) == under.stats.cache_bytes


@every_gate
def test_it_reads_at_most_one_number_a_call(name: str) -> None:
    under, inputs, operations = session(GATES_BY_THRESHOLD[name](0.3)), path(2), Operations()
    reads = []
    for number, x in enumerate(inputs):
        before = sum(operations.counts[word] for word in WAITING)
        with operations:
            step(under, number, x)
        reads.append(sum(operations.counts[word] for word in WAITING) - before)
    assert max(reads) == 1


@every_gate
def test_what_is_not_finite_is_computed(name: str) -> None:
    inputs = path().clone()
    inputs[8] = torch.nan
    with pytest.warns(RuntimeWarning, match="not finite"):
        assert "C" in decisions(GATES_BY_THRESHOLD[name](1e6), inputs)[8:10]


@every_gate
def test_another_shape_is_computed(name: str) -> None:
    under, inputs = session(GATES_BY_THRESHOLD[name](1e6, warmup=2)), path(2)
    with pytest.warns(RuntimeWarning, match="changed"):
        for number in range(STEPS):
            step(under, number, inputs[number, : 2 if number < 6 else 1])
    assert under.stats.trace[6].decision == "C" or under.stats.computed["segment.1"] > 3
