"""Gates in a policy file, and the presets that have them."""

import pytest

from cachesmith.policies import Distance, Gate, Policy, PolicyError, Probe, Segments, decode, encode, preset
from cachesmith.policies.document import Document
from cachesmith.policies.profile import Profile

GATES: list[Gate] = [
    Distance(threshold=0.1),
    Distance(signal="input", per="output", polynomial=(498.65, -3.8, 0.26), threshold=0.0, max_interval=4),
    Probe(threshold=0.1),
    Probe(place="last", against="forecast", norm="l2", threshold=7, decay=0.3, floor=0.1, min_interval=3),
]


@pytest.mark.parametrize("gate", GATES)
def test_gates_survive_a_file(gate: Gate) -> None:
    profile = Profile(units=Segments(starts=(0, 1, -1)), gate=gate)
    policy = Policy(Document(name="test", profiles={"default": profile}))
    assert decode(encode(policy)) == policy and decode(encode(policy)).profile().gate == gate


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("teacache", "threshold = -1.0: input should be greater than or equal to 0"),
        ("speca", "threshold = -1.0"),
        ("dbcache", "threshold = -1.0"),
    ],
)
def test_wrong_values_are_named(text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        preset(text, threshold=-1.0)


def test_published_settings() -> None:
    gate = preset("speca", at_least=2, at_most=8, threshold=7.0, decay=0.3, floor=0.1).profile().gate
    assert isinstance(gate, Probe) and (gate.min_interval, gate.max_interval) == (3, 9)
    assert preset("dbcache", fn=8).profile().units == Segments(starts=(0, 8))
    with pytest.raises(PolicyError, match="decay = 0"):
        preset("speca", decay=0.0)
