"""Controls: evenly spread steps with the first, the last and the number of computed steps that the policy has."""

from collections.abc import Iterator
from functools import partial

from cachesmith.policies import (
    Fixed,
    Forecaster,
    Policy,
    Profile,
    Reuse,
    Stack,
    Taylor,
    computations,
    mask,
    unbound,
)
from cachesmith.policies.schedule import even
from contest.contestant import Contestant, Course
from contest.ours import applied

FAMILY = "control"
ROWS: dict[str, Reuse | Taylor] = {"reuse": Reuse(), "line": Taylor(order=1)}


def entries(course: Course) -> Iterator[Contestant]:
    """Yield reuse and a line on each of the even schedules."""
    for first, last, count in _ends(course):
        gate = Fixed(mask=even(course.steps, first, last, count))
        for name, rows in ROWS.items():
            profile = Profile(units=Stack(), gate=gate, forecaster=Forecaster(rows=rows))
            label = f"uniform, {count} steps from {first} to {last}, {name}"
            yield Contestant(label, FAMILY, f"uniform, {name}", applied(partial(_same, unbound(profile))))


def _ends(course: Course) -> list[tuple[int, int, int]]:
    """First and last computed step of every fixed profile, and its whole computations; without a policy, both ends."""
    if course.policy is None:
        return [(0, course.steps - 1, budget) for budget in course.budgets]
    masks = [_mask(profile, course.steps) for profile in course.policy.document.profiles.values()]
    found = {(0, len(m.rstrip("F")) - 1, int(computations(m))) for m in masks if m is not None}
    return sorted(found, key=lambda ends: ends[2])


def _mask(profile: Profile, steps: int) -> str | None:
    """The schedule of a profile over all denoisers; None where one decides while it samples."""
    gates = [profile.gate, *(part.gate for part in profile.denoisers.values())]
    masks = [mask(gate, steps) for gate in gates if isinstance(gate, Fixed)]
    if len(masks) < len(gates):
        return None
    return "".join(
        next((letter for letter in letters if letter != "-"), "-") for letters in zip(*masks, strict=True)
    )


def _same(policy: Policy) -> Policy:
    return policy
