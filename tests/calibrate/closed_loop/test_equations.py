"""The normal equations are those of the whole chain from weights to latents, whatever lies in between."""

import pytest
import torch
from tests.calibrate.closed_loop.world import Flux, dit, moved, prepared

from cachesmith.calibrate.closed_loop.axes import AXES, Segment
from cachesmith.calibrate.closed_loop.design import combinations, tokens_of
from cachesmith.calibrate.closed_loop.equations import Equations, factored, solve
from cachesmith.calibrate.closed_loop.lanes import Schedule, corrected, line_weights
from cachesmith.calibrate.closed_loop.stack_equations import StackEquations, last_of
from cachesmith.calibrate.memory.live_bytes import LiveBytes, bytes_of

CHANNELS = 32


@pytest.mark.parametrize(
    ("renderer", "schedule", "segment"),
    [
        (Flux, Schedule("CFCFFFCFFF"), Segment(2, 6)),
        (lambda: Flux(2.0), Schedule("CFCFFFCFFF"), Segment(2, 6)),
        (dit, Schedule("CFCFFCFFFF"), Segment(2, 5)),
        (dit, Schedule("CCFHFFCFFF", "second"), Segment(3, 6)),
        (lambda: Flux(2.0), Schedule("CCFHFFCFFF", "later"), Segment(3, 6)),
    ],
    ids=["plain", "calls of their own", "one batch", "halves of a batch", "halves in calls"],
)
def test_rows_are_the_derivative_of_where_the_segment_ends(
    renderer: object, schedule: Schedule, segment: Segment
) -> None:
    batch = prepared(renderer(), schedule, segment.start, CHANNELS)  # type: ignore[operator]
    theta = 0.05 * torch.randn(
        2, len(schedule.lanes), AXES, CHANNELS, generator=torch.Generator().manual_seed(1)
    )
    base = line_weights(schedule, CHANNELS, torch.device("cpu"))
    end, notes = batch.differentiable(segment.stop, corrected(schedule, segment, base, theta))
    weight, miss = (
        torch.tensor([1.0, 2.0, 0.5]),
        torch.randn(end.shape, generator=torch.Generator().manual_seed(2)),
    )
    system = StackEquations(2, schedule, (CHANNELS,), torch.device("cpu"))
    system.add(end, miss, weight, batch.folds, notes, combinations(end, last_of(notes)), range(3))
    (equations,) = system.parts
    one, other = torch.randn(2, *theta.shape[1:], generator=torch.Generator().manual_seed(3))
    far, wide = moved(batch, segment, theta, [one, other])
    for fold in range(2):
        scale = weight * (batch.folds == fold)
        equations.total()  # has all on the host
        gram, right = equations.gram[fold], equations.right[fold]
        expected = [
            float(scale @ (a * b).sum(1)) for a, b in ((far, wide), (far, far), (far, miss.flatten(1)))
        ]
        assert float(one.flatten() @ gram @ other.flatten()) == pytest.approx(expected[0], rel=1e-3, abs=1e-3)
        assert float(one.flatten() @ gram @ one.flatten()) == pytest.approx(expected[1], rel=1e-3)
        assert float(one.flatten() @ right) == pytest.approx(expected[2], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("renderer", [Flux, dit])
def test_a_latents_token_is_found_whatever_the_layout(renderer: type) -> None:
    batch = prepared(renderer(), Schedule("CFFFFFFFFF"), 0, CHANNELS)
    end, notes = batch.differentiable(2, line_weights(batch.schedule, CHANNELS, torch.device("cpu")))
    tokens = tokens_of(end, last_of(notes))
    assert tokens is not None and tokens.shape == end.shape[1:]
    (adjoint,) = torch.autograd.grad(end.flatten(1)[0, 5], notes[-1].output, retain_graph=True)
    reached = adjoint.reshape(-1, 3, *adjoint.shape[1:])[:, 0].abs().sum((0, 2)).nonzero().flatten()
    assert reached.tolist() == [int(tokens.flatten()[5])]


def test_latents_that_depend_on_many_tokens_have_none() -> None:
    forecast = torch.randn(2, 4, 3, requires_grad=True)
    assert tokens_of(forecast.cumsum(1), [forecast]) is None
    mixed = combinations(forecast.cumsum(1), [forecast])
    assert torch.allclose(torch.stack(mixed).square().sum(0), torch.ones(4, 3))


def test_the_ridge_spares_what_channels_share() -> None:
    equations = Equations(2, Schedule("CF"), 4, torch.device("cpu"))
    size = AXES * 4
    equations.gram += torch.eye(size)
    equations.energy += 1.0
    ridge = equations.damped(torch.zeros(size, size), 1.0)
    alike, own = torch.zeros(size), torch.zeros(size)
    alike[:4], own[0], own[1] = 1.0, 1.0, -1.0
    assert float(alike @ ridge @ alike) / 4 < 0.6 * float(own @ ridge @ own) / 2
    assert torch.linalg.eigvalsh(ridge).min() > 0


def test_an_axis_that_is_rounding_gets_no_weights_and_one_that_is_missing_none() -> None:
    equations = Equations(1, Schedule("CF"), 4, torch.device("cpu"))
    sizes = torch.ones(AXES * 4)
    sizes[:4], sizes[-4:] = 1e-12, 0.0
    equations.gram += torch.diag(sizes)
    equations.energy += sizes.view(1, AXES, 4)
    equations.right += 1e-6 * sizes.sign()
    found = equations.without(equations.target(torch.zeros(1, *equations.shape)), 1e-2)
    assert float(found.abs().max()) < 0.1 and not found[..., -1, :].any()


def test_a_folds_weights_never_saw_its_targets() -> None:
    equations = Equations(3, Schedule("CF"), 4, torch.device("cpu"))
    theta = torch.zeros(3, *equations.shape)
    equations.gram += torch.eye(equations.gram.shape[1])
    equations.energy += 1.0
    before = equations.without(equations.target(theta), 0.1)
    equations.right[0] += 1.0
    after = equations.without(equations.target(theta), 0.1)
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1:], after[1:])


def test_a_curvature_that_rounding_made_indefinite_has_a_factor() -> None:
    """Few samples, many unknowns: a matrix of low rank, a little below zero in some directions."""
    rows = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    matrix = rows.T @ rows - 1e-6 * torch.eye(40)
    factor = factored(matrix)
    assert factor.isfinite().all()
    torch.testing.assert_close(factor @ factor.T, matrix, rtol=0, atol=1e-3)


def test_attention_after_the_blocks_mixes_tokens() -> None:
    """Latte attends over time after the last spatial block, and fused attention has no second derivative."""
    forecast = torch.randn(1, 16, 8, requires_grad=True)
    heads = forecast.view(1, 16, 1, 8).transpose(1, 2)
    end = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
    assert tokens_of(end.transpose(1, 2).flatten(2), [forecast]) is None


def test_a_solution_takes_one_matrix_and_is_exact_where_float32_sees_no_positive_one() -> None:
    rows = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    matrix, right = rows.T @ rows, rows[0, :200].clone()
    with LiveBytes() as mode:
        found = solve(matrix.clone, right)
        assert mode.peak < 1.1 * bytes_of(matrix)
    exact = torch.linalg.solve(matrix.double(), right.double())
    assert torch.allclose(found.double(), exact, rtol=1e-3, atol=1e-5)
    singular = rows[:10].T @ rows[:10] + 1e-5 * torch.diag(torch.linspace(0.1, 1, 200))
    assert int(torch.linalg.cholesky_ex(singular)[1])
    wanted = torch.linalg.solve(singular.double(), right.double()).float()
    assert torch.equal(solve(singular.clone, right), wanted)
