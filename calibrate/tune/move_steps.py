"""Local moves of the computed steps, judged in closed loop.

Errors forecast from recorded trajectories mislead: what counts is where the sampler ends. So a schedule is improved by
moving one computed step at a time and sampling again, with early rejection on a few fitting requests.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

SHIFTS = (-1, 1, -2, 2, -3, 3)
LEADING = 4 / 3
"""Steps at which the followed half of guidance is computed, in full computations of a budget."""

PROBE_MARGIN = 0.25
"""A move that loses more than this many dB on the probe samples is not run on the rest."""

Score = Callable[[str, int | None], float]
"""Closed-loop PSNR in dB of a mask on the first so many fitting requests (None: on those that decide)."""


def refine(
    mask: str, score: Score, probe: int, evaluations: int, seed: int, advance: Callable[[], None]
) -> str:
    """Return the best mask found by trying at most `evaluations` moves; the number of computed steps stays.

    A move is scored on `probe` requests and, if it is not rejected there, on those that decide. Deterministic in
    `seed`. `advance` is called for every move.
    """
    chooser = random.Random(seed)
    best, best_probe, best_all = mask, score(mask, probe), score(mask, None)
    left = evaluations
    while left > 0:
        improved = False
        for candidate in _neighbours(best, chooser):
            if left <= 0:
                break
            left -= 1
            advance()
            at_probe = score(candidate, probe)
            if at_probe < best_probe - PROBE_MARGIN:
                continue
            at_all = score(candidate, None)
            if at_all > best_all:
                best, best_probe, best_all, improved = candidate, at_probe, at_all, True
                break
        if not improved:
            break
    return best


def _neighbours(mask: str, chooser: random.Random) -> Iterator[str]:
    """All masks that differ by one step, computed in full or by half, moved up to three places, in random order."""
    computed = [i for i, letter in enumerate(mask) if letter != "F"]
    moves = [(step, step + shift) for step in computed[1:] for shift in SHIFTS]
    chooser.shuffle(moves)
    for source, target in moves:
        if 0 < target < len(mask) and mask[target] == "F":
            letters = [*mask]
            letters[source], letters[target] = "F", mask[source]
            yield "".join(letters)


def from_steps(computed: set[int] | Sequence[int], steps: int) -> str:
    """Spell a set of computed steps as a mask."""
    chosen = set(computed)
    return "".join("C" if step in chosen else "F" for step in range(steps))


def spaced(budget: int, steps: int, power: float = 1.0) -> str:
    """`budget` computed steps, the first among them, spread evenly (1) or ever further apart (a power above 1)."""
    wanted = [round(steps * (i / budget) ** power) for i in range(budget)]
    return from_steps([max(i, step) for i, step in enumerate(wanted)], steps)


def by_halves(budget: float, steps: int, power: float = 1.0) -> str:
    """As `spaced`, with a third more steps, of which so many are computed by half that the budget is kept.

    budget: a multiple of a half.
    """
    leading = min(steps, round(budget * LEADING))
    following = round(2 * budget) - leading
    computed = [i for i, letter in enumerate(spaced(leading, steps, power)) if letter == "C"]
    whole = {computed[round(i * leading / following)] for i in range(following)}
    return "".join("F" if i not in computed else "C" if i in whole else "H" for i in range(steps))


def resize(mask: str, budget: int) -> str:
    """Bring a mask to `budget` computed steps: halve the longest gaps, or drop steps close to their neighbours."""
    computed = [i for i, letter in enumerate(mask) if letter == "C"]
    while len(computed) < budget:
        gaps = [b - a for a, b in pairwise([*computed, len(mask)])]
        widest = gaps.index(max(gaps))
        computed.insert(widest + 1, computed[widest] + (gaps[widest] + 1) // 2)
    while len(computed) > budget:
        spans = [b - a for a, b in zip(computed, [*computed[2:], len(mask)], strict=False)]
        del computed[1 + spans.index(min(spans))]
    return from_steps(computed, len(mask))
