"""The distance gate against TeaCache and EasyCache written out plainly."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.gates.test_relational import UNIT, trajectory
from tests.runtime.units import following, module_unit, visit
from tests.tiny import Pipeline, policy, sample_dit, sample_flux
from torch import Tensor

from cachesmith.policies import Distance, Fixed, Modules, PolicyError, Reuse, Stack, preset
from cachesmith.runtime import Session, Tick, apply, compile_plan, resolve_units
from cachesmith.runtime.gates.distance import polynomial
from cachesmith.runtime.stats import CHANGED_SHAPE


def output(x: Tensor) -> Tensor:
    return torch.sin(3 * x) + 2 * x


def run(gate: Distance, signal: Tensor, start: int = 0, offer: bool = False) -> Session:
    """Let a session run over the inputs, or over the same as modulated inputs of a constant."""
    chosen = policy(Stack(), gate, Reuse())
    times = tuple(map(float, range(len(signal))))
    unit = module_unit() if offer else UNIT
    session = following(lambda first: compile_plan(chosen, chosen.profile(), times, (unit,), first))
    for step in range(start, len(signal)):
        session.begin(Tick(1, step, "0"))
        inputs = signal[0] if offer else signal[step]
        modulated = partial(signal.__getitem__, step) if offer else None
        visit(session, unit, (inputs,), (output(signal[step]),), modulated)
    return session


def letters(session: Session) -> str:
    return "".join(t.decision for t in session.stats.trace)


def reference(gate: Distance, x: Tensor, start: int = 0) -> str:
    decided, last, total = "", -1, torch.zeros(x.shape[1])
    k: Tensor | None = None
    for step in range(start, len(x)):
        compute = (
            step - start < gate.warmup or step >= len(x) - gate.tail or step - last >= gate.max_interval
        ) or (gate.per == "output" and k is None)
        if not compute:
            moved = (x[step] - x[step - 1]).abs().mean((1, 2))
            if gate.per == "output":
                assert k is not None
                change = k * moved / output(x[last]).abs().mean((1, 2))
            else:
                change = moved / x[step - 1].abs().mean((1, 2))
            total = total + sum(c * change**power for power, c in enumerate(reversed(gate.polynomial)))
            compute = float(total.max()) >= gate.threshold
        if compute:
            if last >= 0:
                made = (output(x[step]) - output(x[last])).abs().mean((1, 2))
                k = made / (x[step] - x[last]).abs().mean((1, 2))
            last, total = step, torch.zeros(x.shape[1])
        decided += "C" if compute else "F"
    return decided


gates = st.builds(
    Distance,
    signal=st.just("input"),
    per=st.sampled_from(["signal", "output"]),
    polynomial=st.sampled_from([(1.0, 0.0), (3.0, -0.2, 0.5, 0.01)]),
    threshold=st.floats(0.01, 1),
    warmup=st.integers(1, 5),
    max_interval=st.integers(1, 12),
    tail=st.integers(0, 3),
)


@settings(max_examples=60, deadline=None)
@given(gates, st.integers(1, 3), st.integers(0, 5), st.sampled_from([0, 0, 5]))
def test_the_gate_is_as_published(gate: Distance, batch: int, seed: int, start: int) -> None:
    x = trajectory(batch, seed)
    session = run(gate, x, start)
    assert letters(session) == reference(gate, x, start)
    assert not session.stats.fallbacks


def test_by_hand() -> None:
    """1, 1.1, 1.32, 1.32, 2.64, 2.64: changes of 0.1, 0.2, 0, 1, 0; the second and the fourth reach 0.25."""
    x = torch.tensor([1, 1.1, 1.32, 1.32, 2.64, 2.64])[:, None, None, None].expand(-1, 1, 5, 4)
    gate = Distance(signal="input", threshold=0.25, tail=0)
    session = run(gate, x)
    assert letters(session) == "CFCFCF"
    demands = [t.measured for t in session.stats.trace]
    assert demands == [None, *(pytest.approx(d, abs=1e-5) for d in (0.1, 0.3, 0.0, 1.0, 0.0))]


def test_modulated_inputs_are_what_is_offered() -> None:
    x = trajectory(2, 1)
    plain = run(Distance(signal="input", threshold=0.3), x)
    offered = run(Distance(signal="modulated", threshold=0.3), x, offer=True)
    assert letters(offered) == letters(plain) and "F" in letters(plain)


def test_the_most_demanding_sample_decides() -> None:
    x = trajectory(4, 0)
    gate = Distance(signal="input", threshold=0.4)
    alone = [letters(run(gate, x[:, i : i + 1])) for i in range(4)]
    together = letters(run(gate, x))
    assert len(set(alone)) > 1
    assert together.index("C", 1) == min(a.index("C", 1) for a in alone)


def test_a_value_that_is_not_finite_is_computed() -> None:
    x = trajectory(1, 0).clone()
    x[7] = torch.nan
    with pytest.warns(RuntimeWarning):
        session = run(Distance(signal="input", threshold=1e6), x)
    assert letters(session)[7:9] == "CC" and "C" not in letters(session)[9:-1]


def test_another_shape_is_computed() -> None:
    gate = Distance(signal="input", per="output", threshold=1e6, warmup=2)
    chosen = policy(Stack(), gate, Reuse())
    session = following(
        lambda s: compile_plan(chosen, chosen.profile(), tuple(map(float, range(8))), (UNIT,), s)
    )
    with pytest.warns(RuntimeWarning):
        for step, batch in enumerate((2, 2, 2, 1, 1, 1, 1, 1)):
            x = torch.full((batch, 5, 4), 1.0 + step)
            session.begin(Tick(1, step, "0"))
            visit(session, UNIT, (x,), (output(x),))
    assert letters(session) == "CCFCCFFC" and session.stats.fallbacks[CHANGED_SHAPE] == 1


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6), st.floats(-2, 2))
def test_polynomials(coefficients: list[float], x: float) -> None:
    got = float(polynomial(coefficients, torch.tensor(x, dtype=torch.float64)))
    assert got == pytest.approx(np.polyval(coefficients, x), abs=1e-9)


@pytest.mark.parametrize("name", ["dit", "flux"])
def test_the_modulated_input_of_a_stack_is_the_first_modules_input(
    name: str, request: pytest.FixtureRequest
) -> None:
    """The decisions are the same whether the first module is cached itself, or the stack around it."""
    pipe = request.getfixturevalue(name)
    sample: Any = {"dit": sample_dit, "flux": sample_flux}[name]
    seen = {}
    for units in (Stack(), Modules()):
        # nothing is forecast, so that both see the same trajectory
        gate = Distance(signal="modulated", threshold=0.0)
        with apply(pipe, policy(units, gate, Reuse())) as session:
            sample(pipe)
        seen[units.kind] = [t.measured for t in session.stats.trace]
    assert seen["stack"][1:-1] == pytest.approx(seen["module"][1:-1], rel=1e-5)
    assert all(d is not None and d > 0 for d in seen["stack"][1:-1])


def test_a_model_without_description_is_refused(dit: Pipeline) -> None:
    chosen = preset("teacache")
    units = resolve_units(dit.transformer, Stack())
    bare = tuple(u.__class__(**{**vars(u), "entry": None}) for u in units)
    with pytest.raises(PolicyError, match='signal="input"'):
        compile_plan(chosen, chosen.profile(), (0.0, 1.0), bare)


def test_names_of_groups_are_checked(dit: Pipeline) -> None:
    gate = Fixed(mask="C" * 10, groups={"mpl": "C" * 10})
    with (
        pytest.raises(
            PolicyError, match=r"unit group 'mpl', but .* this model has attn, mlp; rename or remove"
        ),
        apply(dit, policy(Modules(), gate)),
    ):
        sample_dit(dit, steps=10)
