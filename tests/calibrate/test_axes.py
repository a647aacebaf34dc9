"""Tuning axes: they decorrelate what a forecast reads, and reach no weight that multiplies nothing."""

from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_dit

from cachesmith.calibrate.axes import POWER, SMALLEST, Moments, moved
from cachesmith.calibrate.prompts import requests
from cachesmith.calibrate.render import Renderer
from cachesmith.calibrate.tune import tune
from cachesmith.calibrate.weights import Rows, starting_rows

LANES, STEPS, TAPS, CHANNELS = 1, 4, 2, 3
STEP = 2


@pytest.fixture
def rows() -> Rows:
    return Rows(torch.rand(LANES, STEPS, TAPS, CHANNELS), torch.rand(LANES, STEPS, TAPS + 1, CHANNELS))


def features(count: int) -> list[tuple[torch.Tensor, ...]]:
    """Nearly equal features of two samples, as neighbouring steps have them."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(2, 5, CHANNELS, generator=generator)
    return [(common + 0.1 * torch.randn(common.shape, generator=generator),) for _ in range(count)]


def test_axes_decorrelate_what_is_read(rows: Rows) -> None:
    newest, older, made, made_older, now = features(5)
    moments = Moments(rows)
    moments.add(0, STEP, [(newest, made), (older, made_older)], now[0])
    read = torch.stack([made[0], made_older[0], newest[0], older[0], now[0]], -1)
    along = torch.einsum("bnci,cij->bncj", read, moments.axes()[0, STEP])
    second = torch.einsum("bnci,bncj->cij", along, along) / (read.shape[0] * read.shape[1])
    own = second.diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(second, torch.diag_embed(own), atol=1e-4)
    plain = torch.linalg.eigvalsh(moments.total[0, STEP].double())
    expected = plain * (plain / plain[:, -1:] + SMALLEST).pow(-2 * POWER)
    assert torch.allclose(own.double(), expected, rtol=1e-3, atol=1e-5)


def test_nothing_is_reached_where_nothing_was_read(rows: Rows) -> None:
    newest, made, now = features(3)
    moments = Moments(rows)
    moments.add(0, STEP, [(newest, made)], now[0])
    axes = moments.axes()
    assert axes.isfinite().all()
    assert not axes[0, [s for s in range(STEPS) if s != STEP]].any()
    assert not axes[0, STEP, :, [1, TAPS + 1]].any()
    assert axes[0, STEP, :, [0, TAPS, 2 * TAPS]].any(-1).all()


def test_no_way_along_the_axes_leaves_the_weights(rows: Rows) -> None:
    size = 2 * TAPS + 1
    axes = torch.rand(LANES, STEPS, CHANNELS, size, size)
    same = moved(rows, axes, torch.zeros(LANES, STEPS, size, CHANNELS))
    assert torch.equal(same.outputs, rows.outputs) and torch.equal(same.inputs, rows.inputs)


def test_tuning_leaves_computed_steps_and_missing_taps_alone(tmp_path: Path) -> None:
    renderer = Renderer(tiny_dit(), 6, guidance_scale=1.5)
    samples = requests([{"class_labels": i} for i in range(2)], 2, 0)
    images = renderer(samples).images
    start = starting_rows("CFCFFF", 3, (1, 32), {}, None)
    tuned = tune(renderer, [(samples, images)] * 2, "CFCFFF", start, 0.01, lambda _: None, tmp_path / "rows")
    change = [new != old for new, old in zip(tuned, start, strict=True)]
    outputs, inputs = (part.any(-1)[0] for part in change)
    assert outputs.tolist() == [
        [False, False, False], [True, False, False], [False, False, False],
        [True, True, False], [True, True, False], [True, True, False],
    ]  # fmt: skip
    assert inputs.tolist() == [
        [False, False, False, False], [True, False, False, True], [False, False, False, False],
        [True, True, False, True], [True, True, False, True], [True, True, False, True],
    ]  # fmt: skip


def test_no_iterations_leave_the_start(tmp_path: Path) -> None:
    start = starting_rows("CFCFFF", 3, (1, 32), {}, None)
    assert tune(Renderer(tiny_dit(), 6), [], "CFCFFF", start, 0.01, lambda _: None, tmp_path / "r") is start
