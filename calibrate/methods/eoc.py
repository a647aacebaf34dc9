"""Error-Optimized Cache (arXiv 2501.19243): add to every forecast what it was off by on average."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cachesmith.policies import (
    Correction,
    Fixed,
    Forecaster,
    Modules,
    Policy,
    PolicyError,
    Profile,
    Reuse,
    unbound,
)
from cachesmith.policies.schedule import interval_mask
from cachesmith.runtime import Forecast, Plan, Tick, UnitResult, Watcher, compile_plan, resolve_units, watch
from cachesmith.runtime.forecast.estimator import Estimator, observe_scale
from cachesmith.runtime.forecast.history import History
from cachesmith.runtime.models.sampler import axis_values, is_flow, noise_levels
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request

OFFSETS = "eoc/offsets"


def fit_eoc(
    renderer: Renderer,
    requests: Sequence[Request],
    *,
    base: Policy | None = None,
    budget: int | None = None,
    interval: int = 5,
    threshold: float = 0.0,
) -> Policy:
    """Measure the mean error of every forecast on uncached runs of `requests` and add it as a correction.

    base: the policy to be corrected (its default profile); without one attention and MLP outputs are reused (FORA) on
    every `interval`-th step, or on `budget` steps spread evenly. threshold: leave a forecast as it is where the norm
    of its mean error is below this share of the norm of the mean output. Raises `PolicyError` for a base whose gate
    decides while sampling.
    """
    if base is None:
        gate = Fixed(mask=interval_mask(renderer.steps, interval, budget))
        base = unbound(Profile(units=Modules(), gate=gate, forecaster=Forecaster(rows=Reuse())))
    profile = _corrected(base.profile(), None)
    names = {OFFSETS} & set(base.arrays)
    arrays = {name: array for name, array in base.arrays.items() if name not in names}
    teacher = Teacher(renderer, unbound(profile, arrays))
    with watch(renderer.pipe, profile.units, teacher):
        renderer(requests)
    offsets = teacher.offsets(threshold).numpy().astype(np.float32)
    return unbound(_corrected(profile, Correction(offsets=OFFSETS)), {**arrays, OFFSETS: offsets})


def _corrected(profile: Profile, correction: Correction | None) -> Profile:
    change = {"correction": correction}
    overrides = {group: f.model_copy(update=change) for group, f in profile.overrides.items()}
    return profile.model_copy(
        update={"forecaster": profile.forecaster.model_copy(update=change), "overrides": overrides}
    )


class Teacher(Watcher):
    """Compares every unit with the forecast made from true outputs.

    Sums over samples and tokens, for every lane and step: of the error and of the output, [channels] each.
    """

    def __init__(self, renderer: Renderer, policy: Policy):
        super().__init__()
        self._pipe, self._policy, self._steps = renderer.pipe, policy, renderer.steps
        self._units = resolve_units(renderer.pipe.transformer, policy.profile().units)
        self._histories: dict[tuple[str, str], History] = {}
        self._sums: dict[tuple[int, int], tuple[Tensor, Tensor, int]] = {}
        self._plan: Plan | None = None

    def begin(self, tick: Tick) -> None:
        """A transformer call; the sampler's steps are known from the first on."""
        if self._plan is None:
            self.restart()
        super().begin(tick)

    def restart(self) -> None:
        """Forget the run before, and plan the next."""
        self._histories.clear()
        self._plan = self._compile()
        self._estimator = Estimator(self._plan)

    def observe(self, result: UnitResult) -> None:
        """Compare a planned forecast with the truth, or remember a planned computation."""
        step, plan, unit = self._tick.step, self._plan, result.unit
        if step is None or plan is None:
            return
        history = self._histories.setdefault((self._tick.branch, unit.name), History())
        decision = plan.schedule(unit)[step]
        if isinstance(decision, Forecast):
            forecast = self._estimator.output(unit, decision, history, result.inputs)
            for lane, (truth, guess) in enumerate(
                zip(result.outputs, forecast, strict=True), start=unit.lane
            ):
                self._add(lane, step, truth, guess)
        elif decision.keep:
            if plan.observes_scale(unit):
                observe_scale(history, result.feature, result.inputs)
            history.push(step, result.feature, result.inputs, plan.taps(unit), plan.input_taps(unit))

    def offsets(self, threshold: float) -> Tensor:
        """Return the mean errors [lanes, steps, channels], 0 where nothing is forecast or below `threshold`."""
        lanes = sum(len(unit.streams) for unit in self._units)
        channels = {len(error) for error, _, _ in self._sums.values()} or {1}
        if len(channels) > 1:
            raise PolicyError(
                f"the streams have {sorted(channels)} channels; correct units whose streams are alike"
            )
        table = torch.zeros(lanes, self._steps, channels.pop(), dtype=torch.float64)
        for (lane, step), (error, output, count) in self._sums.items():
            if error.norm() >= threshold * output.norm():
                table[lane, step] = error / count
        return table.float()

    def _add(self, lane: int, step: int, truth: Tensor, guess: Tensor) -> None:
        error = (truth.double() - guess.double()).flatten(0, -2)
        parts = error.sum(0).cpu(), truth.double().flatten(0, -2).sum(0).cpu(), len(error)
        known = self._sums.get((lane, step), (0.0, 0.0, 0))
        self._sums[lane, step] = parts[0] + known[0], parts[1] + known[1], parts[2] + known[2]

    def _compile(self) -> Plan:
        profile, scheduler = self._policy.profile(), self._pipe.scheduler
        times = axis_values(profile.axis, noise_levels(scheduler), is_flow(scheduler))
        plan = compile_plan(self._policy, profile, times, self._units)
        if not plan.masks:
            raise PolicyError(
                f"a correction belongs to one schedule, but the gate `{profile.gate.kind}` decides while sampling; "
                "correct a policy with the gate `fixed` or `interval`"
            )
        return plan
