"""SGLang's DPCache planner: the exact best schedule for the line through the last two computed final features.

Source: `runtime/cache/dpcache.py` and `tools/dpcache_calibrate.py` of sgl-project/sglang at commit b9f00c98 (a draft).
Beside our own `dpcache`: a line (order 1) of what the blocks put out rather than of what they add, the mean absolute
error, and a bound on how far two computed steps may be apart. Scored here in float32 on a random subset of elements.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from cachesmith.calibrate.fit.scales import plan_schedules
from cachesmith.calibrate.methods.final_features import final_features
from cachesmith.policies import Policy, PolicyError, unbound
from cachesmith.policies.convert.final_feature import forecasting, lines
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request


def fit_sglang_dpcache(
    renderer: Renderer, requests: Sequence[Request], *, budget: int = 12, forced: int = 3, max_gap: int = 8
) -> Policy:
    """Record uncached runs of `requests` and return the best schedule of `budget` computed steps.

    forced: computed steps at the start, at least 2; max_gap: most steps from one computed step to the next, and from
    the last to the end, or 0 for no bound. Raises `PolicyError` where no schedule keeps all three.
    """
    steps = renderer.steps
    if not 2 <= forced <= budget <= steps or max_gap < 0:
        raise PolicyError(
            f"the budget is {budget} with the first {forced} of {steps} steps computed; give a budget between the two, "
            "force at least 2 steps, and give a max_gap of at least 0"
        )
    longest = max_gap or steps
    if forced + (budget - forced) * longest < steps - longest + 1:
        raise PolicyError(
            f"{budget} computed steps of {steps} cannot be at most {max_gap} apart; raise the budget, or max_gap"
        )
    cost = line_costs(final_features(renderer, requests), longest)
    mask = plan_schedules(cost, [budget], forced)[budget]
    profile, arrays = forecasting(mask, lines(mask, "the schedule"))
    return unbound(profile, arrays)


def line_costs(features: Tensor, longest: int) -> Tensor:
    """Cost of every span between computed steps, [S, S, S + 1]: infinite where two are more than `longest` apart.

    features: [S, N, E]. C[i, j, k] is the sum over steps j + 1 .. k - 1 of the mean absolute error, over samples and
    elements, of the line through steps i < j; k = S is the end. A step named twice, C[0, 0, 1], is the start.
    """
    steps = len(features)
    cost = torch.full((steps, steps, steps + 1), torch.inf, dtype=torch.float64)
    cost[0, 0, 1] = 0.0
    for i, j in combinations(range(steps), 2):
        if j - i > longest:
            continue
        stop = min(steps, j + longest)
        ahead = torch.arange(j + 1, stop).view(-1, 1, 1)
        line = features[j] + (ahead - j) / (j - i) * (features[j] - features[i])
        error = (line - features[j + 1 : stop]).abs().mean((1, 2), dtype=torch.float64)
        cost[i, j, j + 1 : stop + 1] = torch.nn.functional.pad(error.cumsum(0), (1, 0))
    return cost
