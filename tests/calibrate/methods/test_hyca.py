"""Clusters of channels, solvers for each, and where they must agree with what they are made of."""

import numpy as np
import pytest
import torch
from tests.calibrate.methods.small import PAIR
from tests.tiny import sample_dit
from torch import Tensor

from cachesmith.calibrate.fit.clusters import HycaFit, analyse, closed_loop
from cachesmith.calibrate.fit.solvers import POOL, forecast_errors, newest_computed, ridge_table, row_table
from cachesmith.calibrate.methods import METHODS
from cachesmith.calibrate.record.channels import agreement, cluster, descriptors, record_grams, temporal_gram
from cachesmith.policies import (
    Clusters,
    Fitted,
    Fixed,
    Forecaster,
    Interval,
    Modules,
    PolicyError,
    Profile,
    Stack,
    Taylor,
    mask,
    unbound,
)
from cachesmith.runtime import apply
from cachesmith.sampling.evaluate import Evaluator
from cachesmith.sampling.render import Renderer

STEPS = 12
MASK = "CCFFCFFFCFFF"


@pytest.fixture(scope="module")
def grams(renderer: Renderer) -> dict[str, Tensor]:
    return record_grams(renderer, PAIR, Stack())


def channels(seed: int = 0) -> Tensor:
    """Outputs [steps, samples, tokens, 20]: ten channels drift, ten flicker."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.linspace(0, 1, STEPS)[:, None, None, None]
    slope = torch.randn(1, 2, 8, 20, generator=generator)
    noise = torch.randn(STEPS, 2, 8, 20, generator=generator)
    return 1 + time * slope + noise * torch.tensor([0.001] * 10 + [1.0] * 10)


def test_smooth_and_flickering_channels_are_told_apart() -> None:
    labels = cluster(temporal_gram(channels()), 2)
    assert labels.tolist() == [0] * 10 + [1] * 10
    assert agreement([labels, cluster(temporal_gram(channels(1)), 2)]) == 1
    found = analyse({"stack": temporal_gram(channels())[None]}, MASK)
    assert found.clusters == 2 and found.ari_requests is None
    two = torch.stack([temporal_gram(channels()), temporal_gram(channels(1))])
    assert analyse({"stack": two}, MASK).ari_requests == 1


def test_descriptors_are_standardised_and_do_not_depend_on_the_number_of_samples() -> None:
    outputs = channels()
    table = descriptors(temporal_gram(outputs))
    assert np.allclose(table.mean(0), 0) and np.allclose(table.std(0), 1)
    assert np.allclose(table, descriptors(temporal_gram(torch.cat([outputs, outputs], 1))))


def test_descriptors_are_what_the_paper_names() -> None:
    """From the trajectories themselves; the code has their Gram matrices only."""
    outputs = channels().double()
    energy, first, second, third = (outputs.diff(n=n, dim=0).square().mean((0, 1, 2)) for n in range(4))
    power = torch.fft.rfft(outputs, dim=0)[1:].abs().square().mean((1, 2))
    flat = power.log().mean(0).exp() / power.mean(0)
    table = torch.stack(
        [first.log(), second.log(), energy.log(), (third / second).sqrt(), (second / first).sqrt(), flat], 1
    )
    expected = (table - table.mean(0)) / table.std(0, correction=0)
    np.testing.assert_allclose(descriptors(temporal_gram(outputs)), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_errors_are_those_of_the_forecasts() -> None:
    """The quadratic form in the Gram matrix against forecasts made one by one."""
    outputs = channels().double()
    table = row_table(Taylor(order=2), MASK, 3)
    wrong, all_of_it = torch.zeros(2, 20, dtype=torch.float64)
    for step in (s for s in range(STEPS) if MASK[s] == "F"):
        past = newest_computed(MASK, step, 3)
        forecast = torch.einsum("j,j...->...", table[step, : len(past)], outputs[past])
        wrong += (forecast - outputs[step]).square().mean((0, 1))
        all_of_it += outputs[step].square().mean((0, 1))
    got = forecast_errors(temporal_gram(outputs), table[..., None].expand(-1, -1, 20), MASK)
    torch.testing.assert_close(got, wrong / all_of_it)


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("ridge", [1e-9, 1e-2, 1e9])
def test_ridge_rows_sum_to_one(taps: int, ridge: float) -> None:
    table = ridge_table(temporal_gram(channels()), MASK, taps, ridge)
    forecast = torch.tensor([letter == "F" for letter in MASK])
    torch.testing.assert_close(table.sum(1)[forecast], torch.ones_like(table.sum(1)[forecast]))
    assert not table[~forecast].any()


def test_ridge_rows_beat_the_pool_and_end_as_a_line(grams: dict[str, Tensor]) -> None:
    for gram in (temporal_gram(channels()), grams["stack"][0]):
        fitted = forecast_errors(gram, ridge_table(gram, MASK, 4, 1e-9), MASK)
        for row in POOL.values():
            table = row_table(row, MASK, 4)[..., None].expand(-1, -1, len(gram))
            assert (fitted <= forecast_errors(gram, table, MASK) + 1e-9).all()
    pulled = ridge_table(gram, MASK, 4, 1e9)
    line = row_table(Taylor(order=1), MASK, 4)
    torch.testing.assert_close(pulled, line[..., None].expand_as(pulled), atol=1e-5, rtol=0)


def test_a_channel_that_is_always_zero() -> None:
    outputs = channels()
    outputs[..., 3] = 0
    found = analyse({"stack": temporal_gram(outputs)[None]}, MASK, ridge=1e-3)
    assert np.isfinite(found.described).all() and np.isfinite(found.errors).all()


def test_one_cluster_of_taylor_is_taylor(renderer: Renderer, grams: dict[str, Tensor]) -> None:
    found = analyse(grams, MASK, clusters=1)
    found.choice[:] = found.solvers.index("taylor-1")
    row, arrays = found.rows("h")
    assert isinstance(row, Clusters) and row.rows == (Taylor(order=1),)
    pictures = []
    for forecaster, held in ((Forecaster(rows=row), arrays), (Forecaster(rows=Taylor(order=1)), {})):
        with apply(renderer.pipe, unbound(Profile(gate=Fixed(mask=MASK), forecaster=forecaster), held)):
            pictures.append(renderer(PAIR).images)
    torch.testing.assert_close(*pictures, atol=1e-6, rtol=1e-6)


def test_closed_loop_takes_the_solver_that_scores_best(grams: dict[str, Tensor]) -> None:
    found = analyse(grams, MASK, clusters=2)
    wanted = [found.solvers.index("heun"), found.solvers.index("reuse")]

    def score(candidate: HycaFit) -> float:
        return float((candidate.choice == wanted).sum())

    counted: list[int] = []
    best = closed_loop(found, score, counted.append)
    assert best.choice.tolist() == [wanted] and sum(counted) == 2 * len(found.solvers)


@pytest.mark.parametrize("options", [{}, {"ridge": 1e-3}, {"units": "module", "clusters": 2}])
def test_fitted_policies_run_and_ignore_the_rest_of_the_batch(
    renderer: Renderer, options: dict[str, object]
) -> None:
    policy = METHODS["hyca"](renderer, PAIR, interval=3, **options)
    row = policy.profile().forecaster.rows
    assert isinstance(row, Fitted if "ridge" in options else Clusters)
    with apply(renderer.pipe, policy) as session:
        alone = sample_dit(renderer.pipe, labels=(1,))
        batch = sample_dit(renderer.pipe, labels=(1, 2, 3))
    np.testing.assert_allclose(batch[:1], alone, atol=1e-5)
    assert not session.stats.fallbacks
    assert session.stats.nfc == pytest.approx(mask(Interval(interval=3, warmup=2), STEPS).count("C"))


def test_closed_loop_is_no_worse_than_the_probe(renderer: Renderer) -> None:
    evaluator = Evaluator(renderer, PAIR)
    by_probe, by_runs = (
        METHODS["hyca"](renderer, PAIR, schedule=MASK, clusters=2, select=how)
        for how in ("probe", "closed-loop")
    )
    assert by_runs.profile().gate == Fixed(mask=MASK)
    assert evaluator(by_runs).psnr >= evaluator(by_probe).psnr - 1e-6


def test_a_shared_clustering_is_the_same_for_all_units(renderer: Renderer) -> None:
    grams = record_grams(renderer, PAIR, Modules())
    shared, own = (analyse(grams, MASK, clusters=2, shared=shared).ids for shared in (True, False))
    assert len(shared) > 1 and (shared == shared[0]).all() and set(shared[0].tolist()) == {0, 1}
    assert not (own == own[0]).all()
    assert METHODS["hyca"](renderer, PAIR, schedule=MASK, units="module", shared=True).arrays


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "CF"}, "has 2 letters for 12 steps"),
        ({"interval": 0}, "method hyca is not valid: interval = 0"),
        ({"units": "head"}, "choose from stack"),
        ({"select": "best"}, "choose `probe`"),
        ({"ridge": 0.0}, "above 0"),
        ({"clusters": 0}, "give at least 1"),
    ],
)
def test_wrong_options_are_refused(renderer: Renderer, options: dict[str, object], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        METHODS["hyca"](renderer, PAIR, **options)
