"""Fit TeaCache (arXiv 2411.19108): how the change of the output follows from that of the modulated input."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cachesmith.calibrate.methods.threshold import threshold_for
from cachesmith.policies import Policy, PolicyError, Stack
from cachesmith.policies.presets.gates import teacache
from cachesmith.runtime import UnitCall, UnitResult, Watcher, watch
from cachesmith.runtime.hooks.runner import COMPUTE_ALL, Answer
from cachesmith.runtime.models.units import image_stream
from cachesmith.runtime.tensors.norms import relative_l1
from cachesmith.sampling.evaluate import Evaluator
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request

THRESHOLD = 0.25
DEGREES = 8
"""Highest degree of a polynomial: what the gate `distance` holds."""


class SignalChanges(Watcher):
    """Notes how input and output of the stack change from step to step.

    inputs, outputs: one entry [B] for every step but the first of a run, relative L1 on the image stream.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self._before: dict[str, tuple[Tensor, Tensor]] = {}
        self._signal: Tensor | None = None

    def restart(self) -> None:
        """Forget the last step of the run before."""
        self._before.clear()

    def answer(self, call: UnitCall) -> Answer:
        """Have everything computed; note what the blocks are about to be given."""
        if call.modulated is None:
            raise PolicyError(
                "the modulated input of the first block is not known: its modules are not described in "
                "runtime/models/spans.py, or it is compiled; TeaCache cannot be fitted"
            )
        self._signal = call.modulated()
        return COMPUTE_ALL

    def observe(self, result: UnitResult) -> None:
        """Note the changes since the step before."""
        assert self._signal is not None
        now = self._signal.clone(), result.outputs[image_stream(result.unit)].clone()
        before = self._before.get(self._tick.branch)
        if before is not None:
            self.inputs.append(relative_l1(before[0], now[0]).double().cpu())
            self.outputs.append(relative_l1(before[1], now[1]).double().cpu())
        self._before[self._tick.branch] = now


def fit_teacache(
    renderer: Renderer,
    requests: Sequence[Request],
    degree: int = 4,
    threshold: float = THRESHOLD,
    budget: float | None = None,
) -> Policy:
    """Sample `requests` uncached, fit the polynomial, and return TeaCache with it, bound to no model.

    budget: full computations wanted; the threshold is then found in closed loop on the same requests.

    Raises `PolicyError` for a model whose modulated input is not described, or too few steps for the degree.
    """
    if not 1 <= degree <= DEGREES:
        raise PolicyError(f"the polynomial's degree is {degree}; give 1 to {DEGREES}")
    changes = SignalChanges()
    with watch(renderer.pipe, Stack(), changes):
        renderer(requests)
    moved, made = torch.cat(changes.inputs), torch.cat(changes.outputs)
    coefficients = fit_polynomial(moved, made, degree)
    if budget is None:
        return teacache(threshold, coefficients)
    # more than a run can add up to, as far as the fit is right
    high = renderer.steps * float(made.max())
    found = threshold_for(
        budget, lambda t: teacache(t, coefficients), Evaluator(renderer, requests), high * 1e-5, high
    )
    return teacache(found, coefficients)


def fit_polynomial(moved: Tensor, made: Tensor, degree: int) -> tuple[float, ...]:
    """Least squares of `made` on powers of `moved`, over all entries; coefficients, highest power first.

    Raises `PolicyError` when there are not more different points than coefficients.
    """
    x, y = moved.double().flatten().numpy(), made.double().flatten().numpy()
    if len(np.unique(x)) <= degree:
        raise PolicyError(
            f"a polynomial of degree {degree} needs more than {degree} different changes, got {len(np.unique(x))}; "
            "fit on more steps or samples, or lower the degree"
        )
    # scaled, so that high powers of small numbers do not vanish
    scale = float(np.abs(x).max())
    table = np.vander(x / scale, degree + 1)
    solution = np.linalg.lstsq(table, y, rcond=None)[0]
    return tuple(float(c / scale ** (degree - i)) for i, c in enumerate(solution))
