"""The relational gate against RCS written out plainly, on a model whose blocks do nothing but be there."""

from math import factorial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.units import block_run, following, visit
from tests.tiny import Pipeline, policy, sample_dit
from torch import Tensor

from cachesmith.policies import Relational, Reuse, Stack
from cachesmith.runtime import Tick, apply, compile_plan

STEPS = 24
UNIT = block_run()


def trajectory(batch: int, seed: int, wild: float = 0.3) -> Tensor:
    """A smooth path through feature space with a kink, of another size for every sample."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(3, batch, 5, 4, generator=generator)
    t = torch.linspace(0, 1, STEPS)[:, None, None, None]
    speed = torch.linspace(0.2, 1.5, batch)[:, None, None]
    path: Tensor = base[0] + speed * (t * base[1] + torch.sin(5 * t) * wild * base[2] + (t > 0.6) * 0.2)
    return path


def decisions(gate: Relational, inputs: Tensor, start: int = 0) -> str:
    """Let a session run over the inputs."""
    chosen = policy(Stack(), gate, Reuse())
    times = tuple(map(float, range(STEPS)))
    session = following(lambda first: compile_plan(chosen, chosen.profile(), times, (UNIT,), first))
    for step in range(start, STEPS):
        session.begin(Tick(1, step, "0"))
        feature = (inputs[step],)
        visit(session, UNIT, feature, (inputs[step] * 2,))
    assert not session.stats.fallbacks
    return "".join(t.decision for t in session.stats.trace)


def reference(gate: Relational, inputs: Tensor, start: int = 0) -> str:
    """RCS (arXiv 2602.19506): sum the relative L1 error of the Taylor forecast of the input since the last compute."""
    letters = ""
    terms: list[Tensor] = []
    last, error = -1, torch.zeros(inputs.shape[1])
    for step in range(start, STEPS):
        now = inputs[step]
        compute = (
            step - start < max(gate.warmup, 2)
            or step >= STEPS - gate.tail
            or step - last >= gate.max_interval
        )
        if not compute:
            k = step - last
            forecast = sum(term * k**i / factorial(i) for i, term in enumerate(terms))
            error = error + (now - forecast).abs().sum((1, 2)) / now.abs().sum((1, 2))
            tau = gate.thresholds[int(step / STEPS * len(gate.thresholds))]
            compute = float(error.max()) > tau
        if compute:
            updated = [now]
            for i in range(min(gate.order, len(terms))):
                updated.append((updated[i] - terms[i]) / (step - last))
            terms, last, error = updated, step, torch.zeros(inputs.shape[1])
        letters += "C" if compute else "F"
    return letters


gates = st.builds(
    Relational,
    thresholds=st.lists(st.floats(0.01, 2), min_size=1, max_size=4).map(tuple),
    order=st.integers(1, 3),
    warmup=st.integers(1, 5),
    max_interval=st.integers(1, 12),
    tail=st.integers(0, 4),
)


@settings(max_examples=60, deadline=None)
@given(gates, st.integers(1, 4), st.integers(0, 5), st.sampled_from([0, 0, 5]))
def test_the_gate_is_rcs(gate: Relational, batch: int, seed: int, start: int) -> None:
    inputs = trajectory(batch, seed)
    assert decisions(gate, inputs, start) == reference(gate, inputs, start)


def test_thresholds_per_part_of_the_trajectory() -> None:
    inputs = trajectory(1, 0)
    loose = Relational(thresholds=(1e6, 0.0), warmup=2, max_interval=100)
    assert decisions(loose, inputs) == "CC" + "F" * 10 + "C" * 12


def test_the_most_demanding_sample_decides() -> None:
    inputs = trajectory(4, 0)
    gate = Relational(thresholds=(0.2,))
    alone = [decisions(gate, inputs[:, i : i + 1]) for i in range(4)]
    together = decisions(gate, inputs)
    assert len({letters.count("C") for letters in alone}) > 1
    first = [letters.index("C", 2) for letters in alone]
    assert together.index("C", 2) == min(first)
    assert together.count("C") >= max(letters.count("C") for letters in alone)


def test_the_trace_tells_what_was_measured(dit: Pipeline) -> None:
    with apply(dit, policy(Stack(), Relational(thresholds=(0.5,), warmup=3))) as session:
        sample_dit(dit)
    demands = [t.measured for t in session.stats.trace]
    assert demands[:3] == [None] * 3 and all(d is not None for d in demands[3:])
    for t in session.stats.trace[3:]:
        assert (t.decision == "C") == (t.measured is not None and t.measured > 0.5)
    assert "F" in {t.decision for t in session.stats.trace}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs(dtype: torch.dtype) -> None:
    inputs = trajectory(2, 0)
    gate = Relational(thresholds=(0.5,))
    wide, half = decisions(gate, inputs.to(dtype).float()), decisions(gate, inputs.to(dtype))
    assert np.mean([a == b for a, b in zip(wide, half, strict=True)]) == 1
