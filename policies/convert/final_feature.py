"""Forecasts of what the blocks put out, which SGLang's DPCache and L2P make, as weights of what the stack adds.

A stack's feature is its residual F = h - I, h being what the blocks put out and I what entered them. A forecast
h = sum_j w_j h_j is therefore F = sum_j w_j F_j + sum_j w_j I_j - I: fitted weights w, and input weights (w, -1).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from cachesmith.policies.base import Arrays
from cachesmith.policies.errors import PolicyError
from cachesmith.policies.forecaster import Fitted, Forecaster
from cachesmith.policies.gate import Fixed
from cachesmith.policies.policy import Policy
from cachesmith.policies.profile import Profile
from cachesmith.policies.units import Stack

WEIGHTS, INPUTS = "final/weights", "final/input_weights"

_TOLERANCE = 1e-5
"""Of weights that are compared: they are stored as float32."""

Table = Mapping[int, Sequence[float]]
"""Forecast step -> weights of the computed outputs before it, newest first."""


def forecasting(mask: str, table: Table) -> tuple[Profile, Arrays]:
    """Return the profile that forecasts the final feature of the stack's one stream with these weights."""
    taps = max((len(row) for row in table.values()), default=1)
    outputs = np.zeros((1, len(mask), taps), dtype=np.float32)
    inputs = np.zeros((1, len(mask), taps + 1), dtype=np.float32)
    for step, row in table.items():
        outputs[0, step, : len(row)] = inputs[0, step, : len(row)] = row
        inputs[0, step, taps] = -1.0
    rows = Fitted(weights=WEIGHTS, input_weights=INPUTS)
    profile = Profile(units=Stack(), gate=Fixed(mask=mask), forecaster=Forecaster(rows=rows))
    return profile, {WEIGHTS: outputs, INPUTS: inputs}


def forecasts(policy: Policy, profile: Profile, mask: str, table: Table) -> bool:
    """Say whether a profile forecasts the final feature with these weights, up to rounding."""
    rows = profile.forecaster.rows
    if not isinstance(rows, Fitted) or rows.ids is not None or rows.input_weights is None:
        return False
    _, wanted = forecasting(mask, table)
    stored = policy.arrays[rows.weights], policy.arrays[rows.input_weights]
    return all(
        a.shape == b.shape and bool(np.abs(a.astype(np.float64) - b.astype(np.float64)).max() <= _TOLERANCE)
        for a, b in zip(stored, (wanted[WEIGHTS], wanted[INPUTS]), strict=True)
    )


def lines(mask: str, subject: str) -> Table:
    """Return the weights of the line through the last two computed steps.

    Raises `PolicyError` where a step is forecast with less than two computed before it.
    """
    table: dict[int, tuple[float, float]] = {}
    computed: list[int] = []
    for step, letter in enumerate(mask):
        if letter == "C":
            computed.append(step)
            continue
        if len(computed) < 2:
            raise PolicyError(
                f"{subject} forecasts step {step} from two computed ones; compute steps 0 and 1"
            )
        before, last = computed[-2:]
        slope = (step - last) / (last - before)
        table[step] = (1 + slope, -slope)
    return table
