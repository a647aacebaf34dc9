"""Sums, projections and norms: per sample, and wide."""

from collections.abc import Callable
from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cachesmith.runtime.forecast.kernels import (
    clustered_sum,
    cosines,
    high_pass,
    high_pass_grid,
    observed_scale,
    project,
    relative_l1,
    rescale,
    sample_norm,
    weighted_sum,
)

HALVES = [torch.float16, torch.bfloat16]


def features(count: int, dtype: torch.dtype = torch.float64, batch: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, 4, 6, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)
    ]


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=4), st.booleans())
def test_weighted_sum(weights: list[float], with_base: bool) -> None:
    outputs, (base,) = features(len(weights)), features(1)
    expected = sum(w * o for w, o in zip(weights, outputs, strict=True)) + (base if with_base else 0)
    got = weighted_sum(weights, outputs, base if with_base else None)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
def test_one_cluster_is_a_weighted_sum(dtype: torch.dtype) -> None:
    outputs, (base,) = features(3, dtype), features(1, dtype)
    weights = [2.0, -1.5, 0.5]
    table = torch.tensor(weights)[:, None].expand(3, 6)
    for start in (None, base):
        torch.testing.assert_close(
            clustered_sum(table.unbind(), outputs, start), weighted_sum(weights, outputs, start)
        )


def test_clusters_weigh_channels_apart() -> None:
    outputs = features(2)
    ids = torch.tensor([0, 1, 1, 0, 2, 2])
    table = torch.tensor([[2.0, -1.0], [1.0, 0.0], [0.5, 0.5]])
    got = clustered_sum(table[ids].T.unbind(), outputs)
    for channel, cluster in enumerate(ids):
        w = table[cluster].double()
        torch.testing.assert_close(
            got[..., channel], w[0] * outputs[0][..., channel] + w[1] * outputs[1][..., channel]
        )


@pytest.mark.parametrize("dtype", HALVES)
def test_halves_are_summed_wide(dtype: torch.dtype) -> None:
    """Large weights of opposite sign cancel: rounding to half in between would leave nothing."""
    outputs = features(3, dtype)
    weights = [1001.0, -2000.0, 1000.0]
    exact = sum(w * o.double() for w, o in zip(weights, outputs, strict=True))
    got = weighted_sum(weights, outputs)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("dtype", HALVES)
def test_norms_of_halves_do_not_overflow(dtype: torch.dtype) -> None:
    x = torch.full((2, 100, 100), 300.0, dtype=dtype)
    torch.testing.assert_close(sample_norm(x), torch.full((2,), 30000.0))
    assert relative_l1(x, x.float() * 1.5).tolist() == pytest.approx([0.5, 0.5])


@given(st.lists(st.floats(0, 1e3), min_size=3, max_size=3))
def test_rescale_gives_the_length_asked_for(lengths: list[float]) -> None:
    (increment,) = features(1)
    wanted = torch.tensor(lengths, dtype=torch.float64)
    got = rescale(increment, wanted)
    torch.testing.assert_close(sample_norm(got), wanted)
    cosine = torch.cosine_similarity(got.flatten(1), increment.flatten(1))
    assert all(c > 1 - 1e-9 for c, length in zip(cosine, lengths, strict=True) if length > 1e-6)


def test_rescale_leaves_zero_alone() -> None:
    (increment,) = features(1)
    increment[1] = 0
    got = rescale(increment, torch.tensor([1.0, 5.0, 2.0]).double())
    assert not got[1].any() and sample_norm(got).tolist() == pytest.approx([1, 0, 2])


def test_samples_do_not_see_each_other() -> None:
    outputs, (moved, before, now) = features(2), features(3)
    scale = observed_scale(outputs[0], outputs[1], moved, before)
    increment = rescale(outputs[0] - outputs[1], scale * sample_norm(now - moved))
    error = relative_l1(moved, before)
    for i in range(3):
        one = slice(i, i + 1)
        alone = observed_scale(outputs[0][one], outputs[1][one], moved[one], before[one])
        assert alone.item() == pytest.approx(scale[i].item())
        length = alone * sample_norm(now[one] - moved[one])
        torch.testing.assert_close(rescale(outputs[0][one] - outputs[1][one], length), increment[one])
        assert relative_l1(moved[one], before[one]).item() == pytest.approx(error[i].item())


def test_an_input_at_rest_gives_no_wild_scale() -> None:
    (new, old, moved) = features(3, torch.float32)
    scale = observed_scale(new, old, moved, moved.clone())
    assert (scale < 2e6).all() and scale.isfinite().all()
    assert observed_scale(new, old, moved * 0, moved * 0).isfinite().all()


def test_projection() -> None:
    (x,) = features(1)
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
    table = cosines(7, tokens(1))
    torch.testing.assert_close(table @ table.T, torch.eye(7, dtype=torch.float64))
    half = cosines(200, torch.zeros(0)).double()
    assert (half @ half.T - torch.eye(200)).abs().max() < 1e-5
    changes = (table.diff(dim=1).sign().diff(dim=1) != 0).sum(1)
    assert changes.tolist() == sorted(changes.tolist())


def test_the_grid_is_the_cosine_transform_of_rows_and_columns() -> None:
    """One wave of the grid is either removed whole or left whole."""
    for u, v, stays in [(0, 0, False), (1, 0, False), (0, 1, False), (1, 1, True), (3, 4, True)]:
        wave = (cosines(4, tokens(1))[u][:, None] * cosines(5, tokens(1))[v]).reshape(1, 20, 1)
        expected = wave if stays else torch.zeros_like(wave)
        # the highest frequency is (3, 4) at a radius of 5
        torch.testing.assert_close(high_pass_grid(wave, 0.21, (4, 5)), expected)


def test_a_high_pass_keeps_samples_apart() -> None:
    x = tokens(15, batch=3)
    for cut in PASSES.values():
        torch.testing.assert_close(cut(x, 0.2)[1:2], cut(x[1:2], 0.2))
