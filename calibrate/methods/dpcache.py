"""DPCache (arXiv 2602.22654): the schedule with the least summed forecast error, by dynamic programming.

The predictor is TaylorSeer's of order 2 on the whole stack. Unlike the original, which keeps only the best predecessor
of every step, the search goes over all triples of computed steps, so that its optimum is exact; and errors are L2
norms of a fixed random subset of each sample's output.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cachesmith.calibrate.fit.scales import forecast_costs, plan_schedules
from cachesmith.calibrate.record.recorder import Recorder, joined_sketches
from cachesmith.policies import Fixed, Forecaster, Policy, PolicyError, Profile, Stack, Taylor, unbound
from cachesmith.runtime import watch
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request


def fit_dpcache(
    renderer: Renderer, requests: Sequence[Request], *, budget: int = 10, order: int = 2, forced: int = 3
) -> Policy:
    """Record uncached runs of `requests` and return the best schedule of `budget` computed steps.

    order: of the Taylor forecast, 1 or 2; forced: computed steps at the start. Raises `PolicyError` for a budget below
    `forced` or above the number of steps.
    """
    if not forced <= budget <= renderer.steps or forced < 1:
        raise PolicyError(
            f"the budget is {budget} with the first {forced} of {renderer.steps} steps computed; "
            "give a budget between the two, and force at least 1 step"
        )
    if order not in (1, 2):
        raise PolicyError(
            f"schedules are planned for forecasts of order 1 or 2, got {order}; choose one of them"
        )
    recorder = Recorder(sketch=True)
    with watch(renderer.pipe, Stack(), recorder):
        renderer(requests)
    cost = forecast_costs(outputs(recorder, renderer.steps), [float(s) for s in range(renderer.steps)], order)
    mask = plan_schedules(cost, [budget], forced)[budget]
    return unbound(
        Profile(units=Stack(), gate=Fixed(mask=mask), forecaster=Forecaster(rows=Taylor(order=order)))
    )


def outputs(recorder: Recorder, steps: int) -> Tensor:
    """Return the recorded subsets of all streams, [steps, samples, elements]."""
    return torch.cat([joined_sketches(lane, steps) for lane in recorder.sketches.values()], dim=2)
