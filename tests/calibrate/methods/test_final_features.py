"""Methods that forecast what the blocks put out: SGLang's planner, and L2P's matrix."""

from itertools import combinations

import pytest
import torch
from tests.calibrate.methods.small import REQUESTS
from torch import Tensor

from cachesmith.calibrate.fit.scales import plan_schedules
from cachesmith.calibrate.methods import l2p, sglang_dpcache
from cachesmith.calibrate.methods.final_features import final_features
from cachesmith.policies import Fixed, PolicyError
from cachesmith.policies.schedule import computed_steps
from cachesmith.sampling.render import Renderer

STEPS = 10


def made_up(steps: int = STEPS) -> Tensor:
    """[S, N, E]: curves that a line does not follow."""
    torch.manual_seed(0)
    times = torch.linspace(0, 1, steps)[:, None, None]
    return torch.sin(times * torch.rand(1, 3, 40) * 9) + 0.1 * torch.randn(steps, 3, 40)


def cost_of(features: Tensor, computed: tuple[int, ...]) -> float:
    """The summed mean absolute error of all forecast steps, one by one."""
    total = 0.0
    for step in set(range(len(features))) - set(computed):
        old, last = [s for s in computed if s < step][-2:]
        line = features[last] + (step - last) / (last - old) * (features[last] - features[old])
        total += float((line - features[step]).abs().mean())
    return total


@pytest.mark.parametrize("longest", [3, 4, STEPS])
def test_the_plan_is_the_best_of_all(longest: int) -> None:
    features = made_up()
    plan = plan_schedules(sglang_dpcache.line_costs(features, longest), [5], forced=3)[5]
    allowed = [
        (0, 1, 2, *rest)
        for rest in combinations(range(3, STEPS), 2)
        if max(b - a for a, b in zip((2, *rest), (*rest, STEPS), strict=True)) <= longest
    ]
    best = min(allowed, key=lambda computed: cost_of(features, computed))
    assert tuple(computed_steps(plan)) == best


def test_what_cannot_be_planned_is_refused(renderer: Renderer) -> None:
    with pytest.raises(PolicyError, match="4 computed steps of 10 cannot be at most 3 apart"):
        sglang_dpcache.fit_sglang_dpcache(renderer, REQUESTS, budget=4, max_gap=3)
    assert isinstance(
        sglang_dpcache.fit_sglang_dpcache(renderer, REQUESTS, budget=4, max_gap=4).profile().gate, Fixed
    ), "0, 1, 2 and 6: the last is 4 before the end"
    with pytest.raises(PolicyError, match="force at least 2"):
        sglang_dpcache.fit_sglang_dpcache(renderer, REQUESTS, budget=4, forced=1)


def test_final_features_are_what_the_blocks_put_out(renderer: Renderer) -> None:
    found = final_features(renderer, REQUESTS)
    samples = 2 * len(REQUESTS)  # guidance doubles them
    assert found.shape[:2] == (STEPS, samples) and found.isfinite().all()
    assert found[0].std() > 0 and not torch.equal(found[0], found[1])


def test_the_matrix_is_trained_as_the_authors_train_it() -> None:
    features = made_up(6).double()
    weights = torch.eye(6, dtype=torch.float64).requires_grad_()
    mask = torch.ones(6, 6, dtype=torch.float64).tril()
    optimizer = torch.optim.Adam([weights], lr=0.01)
    outputs = features.transpose(0, 1)  # [N, S, E]
    for _ in range(50):
        loss = (torch.matmul(weights * mask, outputs)[:, :-1] - outputs[:, 1:]).pow(2).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    products = torch.einsum("sne,tne->st", features, features) / features[0].numel()
    found = l2p.trained(products, 50, 0.01)
    torch.testing.assert_close(found[:-1], (weights * mask).detach()[:-1], rtol=1e-6, atol=1e-8)


def test_schedules_are_the_authors_lists() -> None:
    assert computed_steps(l2p.l2p_mask(8, 50)) == [0, 1, 2, 4, 10, 20, 31, 41]
    for steps in (5, 10, 28, 50):
        for budget in range(5, steps + 1):
            assert l2p.l2p_mask(budget, steps).count("C") == budget


def test_l2p_refuses_what_it_has_no_schedule_for(renderer: Renderer) -> None:
    with pytest.raises(PolicyError, match="the budget is 4 of 10 steps; give one from 5 to 10"):
        l2p.fit_l2p(renderer, REQUESTS, budget=4)
