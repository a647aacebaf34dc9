"""Shapes of schedules: computed steps spread over a run, evenly or ever further apart, in full or by half."""

from collections.abc import Sequence


def from_steps(computed: set[int] | Sequence[int], steps: int) -> str:
    """Spell a set of computed steps as a mask."""
    chosen = set(computed)
    return "".join("C" if step in chosen else "F" for step in range(steps))


def spaced(budget: int, steps: int, power: float = 1.0) -> str:
    """`budget` computed steps, the first among them, spread evenly (1) or ever further apart (a power above 1)."""
    wanted = [round(steps * (i / budget) ** power) for i in range(budget)]
    return from_steps([max(i, step) for i, step in enumerate(wanted)], steps)


def by_halves(budget: float, steps: int, power: float = 1.0, lead: float = 4 / 3) -> str:
    """As `spaced`, with `lead` times as many steps, of which so many are computed by half that the budget is kept.

    budget: a multiple of a half; lead: 1 to 2.
    """
    leading = min(steps, round(budget * lead))
    following = round(2 * budget) - leading
    computed = [i for i, letter in enumerate(spaced(leading, steps, power)) if letter == "C"]
    whole = {computed[round(i * leading / following)] for i in range(following)}
    return "".join("F" if i not in computed else "C" if i in whole else "H" for i in range(steps))
