"""SmoothCache (arXiv 2411.10510): a kind of layer is reused while its outputs, measured offline, change little."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cachesmith.calibrate.methods.schedule_recorder import RecentOutputs, ScheduleRecorder
from cachesmith.calibrate.methods.threshold import threshold_within
from cachesmith.policies import Fixed, Forecaster, Modules, Policy, PolicyError, Profile, Reuse, unbound
from cachesmith.runtime import Unit, resolve_units, watch
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request


def fit_smoothcache(
    renderer: Renderer,
    requests: Sequence[Request],
    *,
    budget: float | None = None,
    alpha: float = 0.18,
    lookahead: int = 3,
) -> Policy:
    """Measure how the outputs of every kind of module change and return one fixed schedule a kind.

    alpha: largest relative L1 error at which an output is reused; lookahead: most steps reused in a row. With `budget`
    (full computations, which may be a fraction) the smallest alpha that keeps it replaces `alpha`. Raises `PolicyError`
    when the budget cannot be kept.
    """
    if not 1 <= lookahead < renderer.steps:
        raise PolicyError(f"lookahead is {lookahead}; it must be from 1 to {renderer.steps - 1}")
    changes = StepChanges(renderer.steps, lookahead)
    with watch(renderer.pipe, Modules(), ScheduleRecorder(changes.note, taps=lookahead)):
        renderer(requests)
    errors = changes.means()
    units = resolve_units(renderer.pipe.transformer, Modules())
    if budget is not None:
        alpha = threshold_within(lambda a: _computations(units, errors, a), budget)
    masks = {group: smoothcache_mask(table, alpha) for group, table in errors.items()}
    gate = Fixed(mask=masks[units[0].group], groups=masks)
    return unbound(Profile(units=Modules(), gate=gate, forecaster=Forecaster(rows=Reuse())))


def smoothcache_mask(errors: Tensor, alpha: float) -> str:
    """Return the mask of one kind of module.

    errors: [lookahead, steps]; errors[k - 1, s] is the relative L1 error of step s + k when s is reused.
    From a computed step the longest reuse within `alpha` is taken, then the next step is
    computed. The first and the last step always are.
    """
    steps = errors.shape[1]
    letters = ["C"] * steps
    step = 0
    while step < steps:
        within = [k for k in range(1, len(errors) + 1) if step + k < steps and errors[k - 1, step] <= alpha]
        reach = max(within, default=0)
        letters[step + 1 : step + 1 + reach] = "F" * reach
        step += reach + 1
    letters[-1] = "C"
    return "".join(letters)


def _computations(units: Sequence[Unit], errors: Mapping[str, Tensor], alpha: float) -> float:
    counts = {group: smoothcache_mask(table, alpha).count("C") for group, table in errors.items()}
    return round(sum(unit.share * counts[unit.group] for unit in units), 9)


class StepChanges:
    """Running means over samples and depth of |F_t - F_(t-k)|_1 / |F_t|_1, by unit group, distance k and step t - k."""

    def __init__(self, steps: int, lookahead: int):
        self._shape = 2, lookahead, steps
        self._sums: dict[str, Tensor] = {}

    def note(self, unit: Unit, lane: int, step: int, past: RecentOutputs, output: Tensor) -> None:
        """Add one step of one lane."""
        table = self._sums.setdefault(unit.group, torch.zeros(self._shape, dtype=torch.float64))
        size = output.abs().flatten(1).sum(1)
        for before, old in past:
            error = (output - old).abs().flatten(1).sum(1)[size > 0] / size[size > 0]
            table[0, step - before - 1, before] += error.double().sum().cpu()
            table[1, step - before - 1, before] += error.numel()

    def means(self) -> dict[str, Tensor]:
        """Return [lookahead, steps] for every group, infinite where nothing was measured."""
        return {g: torch.where(t[1] > 0, t[0] / t[1].clamp_min(1), torch.inf) for g, t in self._sums.items()}
