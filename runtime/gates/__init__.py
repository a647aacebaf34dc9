"""Gates that decide while sampling, one file each. They see features, never modules."""

from collections.abc import Callable
from typing import Any

from cachesmith.policies import Distance, Gate, Probe, Relational
from cachesmith.runtime.gates.base import GateRules
from cachesmith.runtime.gates.distance import DistanceRules
from cachesmith.runtime.gates.probe import ProbeRules
from cachesmith.runtime.gates.relational import RelationalRules
from cachesmith.runtime.models.units import Unit

GATES: dict[type, Callable[[Any, tuple[Unit, ...]], GateRules]] = {
    Relational: RelationalRules,
    Distance: DistanceRules,
    Probe: ProbeRules,
}
"""Gate of a policy -> its rules on a model's units. A gate that is not here is static."""


def gate_rules(gate: Gate, units: tuple[Unit, ...]) -> GateRules | None:
    """The rules of a gate that decides while sampling; None for a static one. Raises `PolicyError`."""
    if type(gate) not in GATES:
        return None
    rules = GATES[type(gate)](gate, units)
    rules.check(units)
    return rules
