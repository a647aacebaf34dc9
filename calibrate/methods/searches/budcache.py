"""BudCache's first stage (ICML 2026): the schedule for plain reuse that ends closest, by annealing and hill climbing.

Source: `scripts/stage1_search_flux.py` and `configs/search_flux.yaml` of Westlake-AGI-Lab/BudCache. One request is
sampled over and over, and the loss is the mean squared error of its final latents. The original searches with a
distilled copy of the model (a Hyper-SD LoRA) for speed; here the model itself is sampled. Its second stage, which
trains other noise levels for the schedule, is left out: the sampler is the user's.
"""

import random
from collections.abc import Sequence

from cachesmith.calibrate.methods.searches.moves import Losses, ScheduleSpace, anneal, climb
from cachesmith.calibrate.methods.searches.reuse import ScheduleSampler, reusing
from cachesmith.policies import Policy, PolicyError
from cachesmith.progress import stage
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request

HOT, COLD = 0.05, 1e-5
"""First and last temperature, of squared errors of latents."""


def fit_budcache(
    renderer: Renderer,
    requests: Sequence[Request],
    *,
    budget: int = 10,
    annealing: int = 200,
    climbing: int = 20,
    seed: int = 0,
) -> Policy:
    """Search on the first of `requests` and return plain reuse of the whole stack on the best schedule.

    The first quarter of the `budget` computed steps stands at the start. annealing: iterations; climbing: most rounds
    of hill climbing. Raises `PolicyError` for a budget that leaves nothing to choose.
    """
    space = ScheduleSpace(renderer.steps, budget, frozenset(range(max(1, budget // 4))))
    space.check()
    if annealing < 0 or climbing < 0:
        raise PolicyError(f"annealing={annealing} and climbing={climbing} are counts; give at least 0")
    rng = random.Random(seed)
    some = requests[:1]
    uncached, sample = renderer(some).latents, ScheduleSampler(renderer, some)
    with stage("schedules", None) as advance:

        def evaluate(computed: tuple[int, ...]) -> float:
            advance()
            return float((sample(computed).latents - uncached).square().mean())

        loss, start = Losses(evaluate), space.drawn(rng)
        loss(start)
        found = anneal(space, start, loss, annealing, HOT, COLD, rng)
        climb(space, found, loss, climbing, rng)
    return reusing(loss.best(), renderer.steps)
