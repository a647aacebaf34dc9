"""Which steps a static gate computes: masks with one letter a step, C computed, F forecast or H by halves; - where the
denoiser is not called."""

from collections.abc import Iterable, Sequence
from math import inf, log

from cachesmith.policies.errors import PolicyError
from cachesmith.policies.gate import Fixed, Interval, StaticGate
from cachesmith.policies.profile import Profile
from cachesmith.policies.units import GUIDANCE

_FLOOR = 1e-6
"""Noise levels below it count as equal: samplers end at, or next to, zero."""


def mask(gate: StaticGate, steps: int, group: str | None = None) -> str:
    """Return the gate's mask for a run of `steps` steps; for one unit group, if named, in C and F alone."""
    if steps < 1:
        raise PolicyError(f"a run has {steps} steps; at least 1 is needed")
    match gate:
        case Fixed():
            return _fixed(gate, steps, group)
        case Interval():
            return "".join("C" if _computes(gate, step, steps) else "F" for step in range(steps))


def remap(mask: str, sigmas_from: Sequence[float], sigmas_to: Sequence[float]) -> str:
    """Carry a mask to other noise levels: each computed step goes to the nearest one in log sigma, C before H.

    Steps at which the denoiser is not called stay so where the nearest old one was; the first of its own is computed.
    """
    if len(mask) != len(sigmas_from):
        raise PolicyError(
            f"the mask has {len(mask)} letters for {len(sigmas_from)} noise levels; give one letter per step"
        )
    old, new = _logs(sigmas_from), _logs(sigmas_to)
    letters = ["-" if mask[_nearest(new, step, old)] == "-" else "F" for step in range(len(new))]
    for letter in "HC":
        for step in (step for step, found in enumerate(mask) if found == letter):
            letters[_nearest(old, step, new)] = letter
    first = next(step for step, letter in enumerate(letters) if letter != "-")
    letters[first] = "C"
    return "".join(letters)


def computations(mask: str) -> float:
    """Full computations of a mask: a step that is computed by half counts half."""
    return mask.count("C") + mask.count("H") / 2


def halves(mask: str) -> tuple[str, str]:
    """The masks, in C and F, of the half of guidance that is followed, and of the one that follows."""
    return mask.replace("H", "C"), mask.replace("H", "F")


def run_mask(masks: Sequence[str]) -> str:
    """The schedule of a run that several denoisers share: each step's letter is that of the one that is called then.

    Where several are, it is that of the one that computes most.
    """
    return "".join(min(letters, key="CHF-".index) for letters in zip(*masks, strict=True))


def fixed_mask(profile: Profile) -> str | None:
    """The schedule of a profile over all its denoisers; None where a gate is not fixed."""
    gates = [each.gate for each in (profile, *profile.denoisers.values())]
    fixed = [gate.mask for gate in gates if isinstance(gate, Fixed)]
    return run_mask(fixed) if len(fixed) == len(gates) else None


def computed_steps(mask: str) -> list[int]:
    """The steps that are computed in full."""
    return [step for step, letter in enumerate(mask) if letter == "C"]


def from_steps(computed: Iterable[int], steps: int) -> str:
    """Spell a set of computed steps as a mask."""
    chosen = set(computed)
    return "".join("C" if step in chosen else "F" for step in range(steps))


def even(steps: int, first: int, last: int, count: int) -> str:
    """Return the mask of `count` computed steps, as evenly spread from `first` to `last` as they can be."""
    places = {first + round((last - first) * i / max(1, count - 1)) for i in range(count)}
    return from_steps(places, steps)


def spaced(budget: int, steps: int, power: float = 1.0) -> str:
    """`budget` computed steps, the first among them, spread evenly (1) or ever further apart (a power above 1)."""
    wanted = [round(steps * (i / budget) ** power) for i in range(budget)]
    return from_steps([max(i, step) for i, step in enumerate(wanted)], steps)


def by_halves(budget: float, steps: int, power: float = 1.0, lead: float = 4 / 3) -> str:
    """As `spaced`, with `lead` times as many steps, of which so many are computed by half that the budget is kept.

    budget: a multiple of a half; lead: 1 to 2.
    """
    return with_halves(spaced(min(steps, round(budget * lead)), steps, power), budget)


def with_halves(mask: str, budget: float, starts: Sequence[int] = (0,)) -> str:
    """Of a mask's computed steps, evenly spread ones by half, so many that the budget is kept, but none of `starts`.

    budget: a multiple of a half, from half of the computed steps and of `starts` together on.
    """
    computed = computed_steps(mask)
    whole = min(round(2 * budget) - len(computed), len(computed))
    wanted = {computed[round(i * len(computed) / whole)] for i in range(whole)}
    for start in {*starts} - wanted:
        wanted.remove(
            min((step for step in wanted if step not in starts), key=lambda step: abs(step - start))
        )
        wanted.add(start)
    return "".join(letter if letter != "C" or step in wanted else "H" for step, letter in enumerate(mask))


def interval_gate(steps: int, interval: int, budget: int | None, warmup: int = 1) -> StaticGate:
    """Every `interval`-th step, for any number of steps; or `budget` steps spread evenly, if that is given."""
    if budget is None:
        return Interval(interval=interval, warmup=warmup)
    if not 1 <= budget <= steps:
        raise PolicyError(f"the budget is {budget} for {steps} steps; give a number from 1 to {steps}")
    return Fixed(mask=spaced(budget, steps))


def interval_mask(steps: int, interval: int, budget: int | None, warmup: int = 1) -> str:
    """The mask of `interval_gate`."""
    return mask(interval_gate(steps, interval, budget, warmup), steps)


def _fixed(gate: Fixed, steps: int, group: str | None) -> str:
    letters = gate.mask if group is None else gate.groups.get(group, gate.mask)
    if len(letters) != steps:
        raise PolicyError(
            f"the mask has {len(letters)} letters for {steps} steps; use {len(letters)} steps or remap it"
        )
    leading, following = halves(letters)
    return letters if group is None else following if group == GUIDANCE else leading


def _computes(gate: Interval, step: int, steps: int) -> bool:
    since_warmup = step - (gate.warmup - 1)
    return since_warmup <= 0 or since_warmup % gate.interval == 0 or step >= steps - gate.tail


def _logs(sigmas: Sequence[float]) -> list[float]:
    # `not (0 <= s < inf)` also catches NaN
    wrong = [s for s in sigmas if not 0 <= s < inf]
    if wrong or not sigmas:
        raise PolicyError(
            f"noise levels must be finite and at least 0, and at least one is needed, got {wrong[:3]}"
        )
    return [log(max(s, _FLOOR)) for s in sigmas]


def _nearest(old: Sequence[float], step: int, new: Sequence[float]) -> int:
    # equal noise levels, as second-order samplers have, are told apart by their place in the run
    place = step / len(old)
    return min(range(len(new)), key=lambda k: (abs(new[k] - old[step]), abs(k / len(new) - place)))
