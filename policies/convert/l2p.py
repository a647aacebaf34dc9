"""L2P's learnt weights (`predictor/weight.txt` of Aredstone/L2P-Cache): numbers, and nothing that is executed."""

from pydantic import Field

from cachesmith.policies.base import Frozen, Mask
from cachesmith.policies.convert.common import Converted, parse_settings
from cachesmith.policies.convert.final_feature import forecasting
from cachesmith.policies.errors import PolicyError
from cachesmith.policies.policy import unbound
from cachesmith.policies.schedule import computed_steps

SUBJECT = "L2P's settings"
_LONGEST = 200
"""Steps: with more, the table of unrolled weights would outgrow what it stands for."""

OUTPUT = (
    "L2P forecasts what the model returns; this policy, with the same weights, what enters its output head, which is "
    "computed at every step"
)


class L2pFields(Frozen):
    """The matrix, row t holding the weights of outputs 0 to t in the forecast of step t + 1, and the schedule.

    The matrix alone does not say which steps are computed: L2P's code has lists of them by interval.
    """

    weights: list[list[float]] = Field(min_length=2, max_length=_LONGEST)
    mask: Mask


def from_l2p(raw: object, steps: int | None) -> Converted:
    """Read `{"weights": matrix, "mask": "CCCFCF..."}`; a bare matrix lacks its schedule.

    L2P appends its forecasts to the history that the next ones are made of. A forecast is linear, so this unrolls it:
    every forecast becomes a sum of computed outputs alone, with the same value.
    """
    if isinstance(raw, list):
        raise PolicyError(
            "L2P's matrix does not say which steps are computed; give --mask with one letter a step, C or F"
        )
    fields = parse_settings(L2pFields, raw, SUBJECT)
    mask, matrix = fields.mask, fields.weights
    count = len(mask)
    if steps not in (None, count):
        raise PolicyError(f"the mask has {count} letters for {steps} steps; give one per step")
    if len(matrix) < count - 1:
        raise PolicyError(f"{SUBJECT} have {len(matrix)} rows for {count} steps; shorten the mask")
    _check_triangle(matrix)
    profile, arrays = forecasting(mask, unrolled(mask, matrix))
    return Converted(unbound(profile, arrays, name="l2p"), (OUTPUT,))


def unrolled(mask: str, matrix: list[list[float]]) -> dict[int, list[float]]:
    """Return, for every forecast step, the weights of the computed outputs before it, newest first."""
    computed = computed_steps(mask)
    known: list[dict[int, float]] = []
    for step, letter in enumerate(mask):
        if letter == "C":
            known.append({step: 1.0})
            continue
        total: dict[int, float] = {}
        for weight, parts in zip(matrix[step - 1], known, strict=False):
            for source, share in parts.items():
                total[source] = total.get(source, 0.0) + weight * share
        known.append(total)
    return {
        step: [known[step].get(source, 0.0) for source in reversed(computed) if source < step]
        for step, letter in enumerate(mask)
        if letter == "F"
    }


def _check_triangle(matrix: list[list[float]]) -> None:
    for number, row in enumerate(matrix):
        if len(row) != len(matrix):
            raise PolicyError(
                f"row {number} of the matrix has {len(row)} of {len(matrix)} numbers; correct it"
            )
        if any(row[number + 1 :]):
            raise PolicyError(f"row {number} of the matrix weighs outputs that are not there yet; correct it")
