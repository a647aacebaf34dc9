"""From what a dynamic gate did to a schedule settled beforehand."""

from collections import defaultdict
from collections.abc import Iterable
from math import floor

from cachesmith.policies import Fixed
from cachesmith.runtime.stats import Trace


def distill(trace: Iterable[Trace], steps: int) -> Fixed:
    """Return the fixed schedule that computes as much, and as densely, as the gate did on average.

    The k-th computed step is the first by which the runs in `trace`, over all branches, have computed k - 1/2 steps on
    average; where all runs agree this is their schedule. A step that is computed in part counts as forecast. Raises
    `ValueError` for a trace that is empty or has steps beyond `steps`.
    """
    computed: dict[tuple[int, str], set[int]] = defaultdict(set)
    for entry in trace:
        if not 0 <= entry.step < steps:
            raise ValueError(
                f"the trace has step {entry.step}, but the schedule is for {steps}; give more steps"
            )
        computed[entry.run, entry.branch] |= {entry.step} if entry.decision == "C" else set()
    if not computed:
        raise ValueError(
            "there is no trace to learn from; sample under a policy whose gate decides while sampling"
        )
    letters, total = "", 0
    for step in range(steps):
        before, total = total, total + sum(step in done for done in computed.values())
        letters += "C" if _rounded(total, len(computed)) > _rounded(before, len(computed)) else "F"
    return Fixed(mask="C" + letters[1:])


def _rounded(total: int, runs: int) -> int:
    return floor(total / runs + 0.5)
