"""What is done to a step away from the newest output: per sample, and wide."""

from collections.abc import Callable
from math import ceil

import pytest
import torch

from cachesmith.runtime.tensors.increments import cosines, high_pass, high_pass_grid, project

CPU = torch.device("cpu")


def test_projection() -> None:
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    full = torch.linalg.qr(
        torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ).Q
    torch.testing.assert_close(project(x, full), x)
    half = full[:, :3]
    once = project(x, half)
    torch.testing.assert_close(project(once, half), once)
    torch.testing.assert_close(
        (x - once) @ half, torch.zeros(3, 4, 3, dtype=torch.float64), atol=1e-9, rtol=0
    )


def tokens(count: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, count, 3, generator=generator, dtype=torch.float64)


PASSES: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "row": lambda x, cutoff: high_pass(x, cutoff),
    "grid": lambda x, cutoff: high_pass_grid(x, cutoff, (3, 5)),
}


@pytest.mark.parametrize("name", PASSES)
def test_a_high_pass_is_a_projector(name: str) -> None:
    x, y = tokens(15).chunk(2)
    once = PASSES[name](x, 0.3)
    torch.testing.assert_close(PASSES[name](once, 0.3), once)
    torch.testing.assert_close(PASSES[name](x + 2 * y, 0.3), once + 2 * PASSES[name](y, 0.3))
    assert 0 < once.norm() < x.norm()
    torch.testing.assert_close((once * (x - once)).sum(), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("name", PASSES)
def test_cutoffs_at_the_ends(name: str) -> None:
    x = tokens(15)
    torch.testing.assert_close(PASSES[name](x, 0.0), x)
    torch.testing.assert_close(PASSES[name](x, 1.0), torch.zeros_like(x))
    flat = x.mean(1, keepdim=True).expand_as(x)
    torch.testing.assert_close(PASSES[name](flat, 0.01), torch.zeros_like(x))


@pytest.mark.parametrize("count", [1, 2, 15, 64])
def test_the_low_frequencies_by_least_squares(count: int) -> None:
    """What is removed is the fit of the lowest sines and cosines over the token index."""
    low = ceil(0.1 * (count // 2 + 1))
    angle = torch.arange(count, dtype=torch.float64)[:, None] * torch.arange(low) * 2 * torch.pi / count
    waves = torch.cat([angle.cos(), angle.sin()], 1)
    x = tokens(count)
    fit = waves @ (torch.linalg.pinv(waves) @ x)
    torch.testing.assert_close(high_pass(x, 0.1), x - fit)


def test_cosines_are_orthonormal_and_ordered() -> None:
    table = cosines(7, torch.float64, CPU)
    torch.testing.assert_close(table @ table.T, torch.eye(7, dtype=torch.float64))
    half = cosines(200, torch.float32, CPU).double()
    assert (half @ half.T - torch.eye(200)).abs().max() < 1e-5
    changes = (table.diff(dim=1).sign().diff(dim=1) != 0).sum(1)
    assert changes.tolist() == sorted(changes.tolist())


def test_the_grid_is_the_cosine_transform_of_rows_and_columns() -> None:
    """One wave of the grid is either removed whole or left whole."""
    for u, v, stays in [(0, 0, False), (1, 0, False), (0, 1, False), (1, 1, True), (3, 4, True)]:
        wave = (cosines(4, torch.float64, CPU)[u][:, None] * cosines(5, torch.float64, CPU)[v]).reshape(
            1, 20, 1
        )
        expected = wave if stays else torch.zeros_like(wave)
        # the highest frequency is (3, 4) at a radius of 5
        torch.testing.assert_close(high_pass_grid(wave, 0.21, (4, 5)), expected)


def test_a_high_pass_keeps_samples_apart() -> None:
    x = tokens(15, batch=3)
    for cut in PASSES.values():
        torch.testing.assert_close(cut(x, 0.2)[1:2], cut(x[1:2], 0.2))
