"""Gates that decide while sampling on every supported architecture."""

import pytest
from tests.runtime.models.test_adapters import MODULAR, pytestmark, run
from tests.tiny import policy

from cachesmith.policies import Distance, Modules, PolicyError, Probe, Segments, Stack, Taylor
from cachesmith.zoo import KNOWN

__all__ = ["pytestmark"]


@pytest.mark.parametrize("name", MODULAR)
def test_the_modulated_input_is_the_first_modules(name: str) -> None:
    """It is the same whether the first module itself is asked, or the stack around it; nothing else changes."""
    seen = []
    for units in (Stack(), Modules()):
        gate = Distance(signal="modulated", threshold=0.0)
        _, session = run(name, policy(units, gate))
        assert not session.stats.forecast and not session.stats.fallbacks
        seen.append([t.measured for t in session.stats.trace[1:-1]])
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)
    assert all(demand > 0 for demand in seen[0])


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in MODULAR])
def test_where_it_is_not_described_the_input_serves(name: str) -> None:
    with pytest.raises(PolicyError, match='signal="input"'):
        run(name, policy(Stack(), Distance(threshold=0.1)))
    _, session = run(name, policy(Stack(), Distance(signal="input", threshold=1e6)))
    assert "".join(t.decision for t in session.stats.trace) == "CFFFFFFC"


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("place", ["first", "last"])
def test_probes(name: str, place: str) -> None:
    gate = Probe.model_validate({"place": place, "against": "forecast", "threshold": 1e6, "warmup": 2})
    starts = (0, 1) if place == "first" else (0, -1)
    _, session = run(name, policy(Segments(starts=starts), gate, Taylor(order=1)))
    assert "".join(t.decision for t in session.stats.trace) == "CCFFFFFF"
    assert sorted(session.stats.computed.values()) == [2, 8] and not session.stats.fallbacks
    assert all(t.measured is not None for t in session.stats.trace[2:])
