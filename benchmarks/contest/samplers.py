"""What needs no cache at all: fewer steps, with the pipeline's own sampler or one of higher order."""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

import diffusers

from cachesmith.runtime.hooks.patch import patched
from cachesmith.runtime.models.sampler import is_flow
from cachesmith.sampling.render import Renderer
from contest.contestant import Contestant, Course, Enter, Gauge

FAMILY = "fewer steps"
STEPS = (8, 10, 14, 20, 25)
HEUN_STEPS = (4, 5, 7, 10, 13)
"""Heun calls the model twice in every step but the last."""
SPACINGS = ("linspace", "trailing")


def entries(course: Course) -> Iterator[Contestant]:
    """Yield the pipeline's own sampler, DPM-Solver++ (2M), UniPC and, for flow matching, Heun at fewer steps."""
    scheduler = course.renderer.pipe.scheduler
    makers = {
        "DPM-Solver++ 2M": diffusers.DPMSolverMultistepScheduler,
        "UniPC": diffusers.UniPCMultistepScheduler,
    }
    if type(scheduler) not in makers.values():
        makers = {type(scheduler).__name__: type(scheduler), **makers}
    for (name, sampler), spacing, steps in product(makers.items(), _spacings(scheduler), STEPS):
        label = f"{name}, {steps} steps" + (f", {spacing}" if spacing else "")
        yield Contestant(label, FAMILY, name, _enter(steps, partial(_same_noise, sampler, spacing)))
    for steps in HEUN_STEPS if is_flow(scheduler) else ():
        yield Contestant(f"flow Heun, {steps} steps", FAMILY, "flow Heun", _enter(steps, _heun))


def _spacings(scheduler: Any) -> tuple[str | None, ...]:
    """How steps are spread: as the pipeline does (None), or otherwise where the sampler can: not in flow matching."""
    own = None if is_flow(scheduler) else scheduler.config.get("timestep_spacing")
    return (None,) if own is None else (None, *(s for s in SPACINGS if s != own))


def _enter(steps: int, make: Callable[[Any], Any]) -> Enter:
    @contextmanager
    def enter(renderer: Renderer) -> Iterator[Gauge]:
        pipe = renderer.pipe
        with patched(renderer, "steps", steps), patched(pipe, "scheduler", make(pipe.scheduler)):
            yield Gauge()

    return enter


def _same_noise(sampler: Any, spacing: str | None, scheduler: Any) -> Any:
    """Make a sampler of the same noise levels; flow matching needs to be told."""
    spread = {} if spacing is None else {"timestep_spacing": spacing}
    if not is_flow(scheduler) or sampler is type(scheduler):
        return sampler.from_config(scheduler.config, **spread)
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    dynamic = bool(scheduler.config.get("use_dynamic_shifting"))
    shift = {} if dynamic else {"flow_shift": _shift(scheduler)}
    return _lenient(sampler.from_config(scheduler.config, **flow, **shift), dynamic)


def _shift(scheduler: Any) -> float:
    """The static shift of a flow sampler: those that know other noise, too, call it `flow_shift`."""
    return float(scheduler.config.get("flow_shift", scheduler.config.get("shift", 1.0)))


def _heun(scheduler: Any) -> Any:
    made = diffusers.FlowMatchHeunDiscreteScheduler.from_config(scheduler.config, shift=_shift(scheduler))
    made.register_to_config(use_flow_sigmas=True)  # FluxPipeline then leaves the noise levels to the sampler
    return _lenient(made, bool(scheduler.config.get("use_dynamic_shifting")))


def _lenient(scheduler: Any, dynamic: bool) -> Any:
    """Take what pipelines pass to every flow sampler, also where this one has no use for it.

    Of noise levels that the sampler sets itself the number counts. `mu`, the shift that follows from the number of
    tokens, is left out unless the pipeline's own sampler is `dynamic`.
    """
    plain = scheduler.set_timesteps
    known = set(inspect.signature(plain).parameters)

    def set_timesteps(
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        given = {"sigmas": sigmas} if "sigmas" in known else {}
        if sigmas is not None and not given:
            num_inference_steps = len(sigmas)
        if dynamic and mu is not None:
            if "mu" in known:
                given["mu"] = mu
            else:
                scheduler.register_to_config(shift=math.exp(mu))
        plain(num_inference_steps, device, **given)

    scheduler.set_timesteps = set_timesteps
    return scheduler
