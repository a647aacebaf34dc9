"""Simulated annealing and hill climbing over schedules of one number of computed steps.

As in BudCache (ICML 2026; github.com/Westlake-AGI-Lab/BudCache), which Golden Path Hypothesis (arXiv 2609.39343) takes
its search from: a computed step moves elsewhere, most often by a few places, seldom two at once.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

from cachesmith.policies import PolicyError

ComputedSteps = tuple[int, ...]
"""Computed steps, ascending."""

_WINDOW = 3
"""Steps: how far a local move goes."""

LOCAL, SINGLE = 0.7, 0.9
"""Shares of moves that are local, and of those that move one step rather than two."""

JUMPS = 2
"""Moves to anywhere that hill climbing tries of every step, beside all local ones."""


class SpentError(Exception):
    """All evaluations are used up."""


@dataclass(frozen=True)
class ScheduleSpace:
    """Schedules of `budget` computed steps of `steps`, with all of `forced` among them."""

    steps: int
    budget: int
    forced: frozenset[int]

    def check(self) -> None:
        """Raise `PolicyError` where there is no such schedule, or only one."""
        least, most = len(self.forced) + 1, self.steps - 1
        if not least <= self.budget <= most:
            raise PolicyError(
                f"the budget is {self.budget} with {len(self.forced)} of {self.steps} steps forced; give one from "
                f"{least} to {most}"
            )

    def drawn(self, rng: random.Random) -> ComputedSteps:
        """Return a random schedule."""
        others = [step for step in range(self.steps) if step not in self.forced]
        return tuple(sorted({*self.forced, *rng.sample(others, self.budget - len(self.forced))}))

    def moved(self, computed: ComputedSteps, rng: random.Random) -> ComputedSteps:
        """Return a schedule with one computed step moved, or two."""
        movable, free = self._parts(computed)
        if rng.random() >= SINGLE and min(len(movable), len(free)) > 1:
            return _replaced(computed, rng.sample(movable, 2), rng.sample(free, 2))
        step = rng.choice(movable)
        near = [other for other in free if abs(other - step) <= _WINDOW]
        local = near if rng.random() < LOCAL and near else free
        return _replaced(computed, [step], [rng.choice(local)])

    def neighbours(self, computed: ComputedSteps, rng: random.Random) -> Iterator[ComputedSteps]:
        """Yield every local move of one step, and some to anywhere, each once."""
        movable, free = self._parts(computed)
        seen = {computed}
        for step in movable:
            near = [other for other in free if abs(other - step) <= _WINDOW]
            for other in (*near, *(rng.choice(free) for _ in range(JUMPS))):
                found = _replaced(computed, [step], [other])
                if found not in seen:
                    seen.add(found)
                    yield found

    def _parts(self, computed: ComputedSteps) -> tuple[list[int], list[int]]:
        movable = [step for step in computed if step not in self.forced]
        return movable, [step for step in range(self.steps) if step not in computed]


def _replaced(computed: ComputedSteps, old: list[int], new: list[int]) -> ComputedSteps:
    return tuple(sorted({*computed} - {*old} | {*new}))


class Losses:
    """What every schedule tried so far has cost; a new one is an evaluation. Raises `SpentError` beyond `most`."""

    def __init__(self, evaluate: Callable[[ComputedSteps], float], most: int | None = None):
        self.known: dict[ComputedSteps, float] = {}
        self._evaluate, self._most = evaluate, most

    def __call__(self, computed: ComputedSteps) -> float:
        """The loss of a schedule: the smaller the better."""
        if computed not in self.known:
            if len(self.known) == self._most:
                raise SpentError
            self.known[computed] = self._evaluate(computed)
        return self.known[computed]

    def best(self) -> ComputedSteps:
        """The best schedule tried so far."""
        return min(self.known, key=self.known.__getitem__)


def anneal(
    space: ScheduleSpace,
    start: ComputedSteps,
    loss: Callable[[ComputedSteps], float],
    iterations: int,
    hot: float,
    cold: float,
    rng: random.Random,
) -> ComputedSteps:
    """Accept worse schedules with probability exp(-difference / temperature), which falls from `hot` to `cold`."""
    current = start
    for iteration in range(iterations):
        temperature = hot * (cold / hot) ** (iteration / iterations)
        found = space.moved(current, rng)
        worse = loss(found) - loss(current)
        if worse < 0 or rng.random() < math.exp(-worse / temperature):
            current = found
    return current


def climb(
    space: ScheduleSpace,
    start: ComputedSteps,
    loss: Callable[[ComputedSteps], float],
    rounds: int,
    rng: random.Random,
) -> ComputedSteps:
    """Go to the best neighbour until none is better, or for `rounds` rounds."""
    current = start
    for _ in range(rounds):
        found = min(space.neighbours(current, rng), key=loss)
        if loss(found) >= loss(current):
            break
        current = found
    return current


def typical_difference(
    space: ScheduleSpace, loss: Callable[[ComputedSteps], float], pairs: int, rng: random.Random
) -> float:
    """Return the median of how much one move from a random schedule changes the loss."""
    differences = []
    for _ in range(pairs):
        start = space.drawn(rng)
        differences.append(abs(loss(space.moved(start, rng)) - loss(start)))
    return median(differences)
