"""Tuning axes: they decorrelate what a forecast reads, and reach no weight that multiplies nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tests.tiny import tiny_dit

from cachesmith.calibrate.tune import tune as tune_module
from cachesmith.calibrate.tune.preconditioner import LEAST, POWER, SMALLEST, Moments, balanced, rows_at
from cachesmith.calibrate.tune.rows import Rows, starting_rows
from cachesmith.calibrate.tune.tune import Batch, tune
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import requests

LANES, STEPS, TAPS, CHANNELS = 2, 4, 2, 3
SIZE = 2 * TAPS + 1
LANE, STEP = 1, 2


@pytest.fixture
def rows() -> Rows:
    return Rows(torch.rand(LANES, STEPS, TAPS, CHANNELS), torch.rand(LANES, STEPS, TAPS + 1, CHANNELS))


def features(count: int, dtype: torch.dtype = torch.float32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Nearly equal features of two samples, as neighbouring steps have them; lanes of 5 and 7 tokens."""
    generator = torch.Generator().manual_seed(0)

    def lane(tokens: int) -> list[torch.Tensor]:
        common = 300 * torch.randn(2, tokens, CHANNELS, generator=generator)
        return [
            (common + 30 * torch.randn(common.shape, generator=generator)).to(dtype) for _ in range(count)
        ]

    return list(zip(lane(5), lane(7), strict=True))


def whole(rows: Rows, dtype: torch.dtype = torch.float32) -> tuple[Moments, torch.Tensor]:
    """Moments of one forecast, and what it read: [tokens of all samples, channels, SIZE]."""
    newest, older, made, made_older, now = features(5, dtype)
    moments = Moments(rows)
    past = [(newest[LANE], made[LANE]), (older[LANE], made_older[LANE])]
    moments.add(LANE, STEP, past, now[LANE])
    read = torch.stack([f[LANE] for f in (made, made_older, newest, older, now)], -1)
    return moments, read.double().flatten(0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_axes_decorrelate_what_is_read(rows: Rows, dtype: torch.dtype) -> None:
    moments, read = whole(rows, dtype)
    second = torch.einsum("nci,ncj->cij", read, read)
    assert torch.allclose(moments.total[LANE, STEP], second)
    assert moments.total.count_nonzero() == second.numel()
    axes = moments.axes()[LANE, STEP].double()
    turned = axes.mT @ second @ axes / second.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    own = turned.diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(turned, torch.diag_embed(own), atol=1e-6)
    plain = torch.linalg.eigvalsh(second)
    expected = plain * (plain / plain[:, -1:] + SMALLEST).pow(-2 * POWER) / plain.sum(-1, keepdim=True)
    assert torch.allclose(own, expected, rtol=1e-4)


def test_moments_add_up_over_samples(rows: Rows) -> None:
    newest, older, made, made_older, now = features(5)
    parts = Moments(rows)
    for tokens in (slice(0, 3), slice(3, None)):
        pairs = ((newest, made), (older, made_older))
        past = [(entered[LANE][:, tokens], left[LANE][:, tokens]) for entered, left in pairs]
        parts.add(LANE, STEP, past, now[LANE][:, tokens])
    assert torch.allclose(parts.total, whole(rows)[0].total)


def test_nothing_is_reached_where_nothing_was_read(rows: Rows) -> None:
    newest, made, now = features(3)
    moments = Moments(rows)
    moments.add(LANE, STEP, [(newest[LANE], made[LANE])], now[LANE])
    axes = moments.axes()
    assert axes.isfinite().all()
    assert axes.any(-1).any(-1).any(-1).nonzero().tolist() == [[LANE, STEP]]
    assert not axes[LANE, STEP, :, [1, TAPS + 1]].any()
    assert axes[LANE, STEP, :, [0, TAPS, 2 * TAPS]].any(-1).all()


def test_channels_that_matter_more_are_moved_less() -> None:
    axes = torch.rand(LANES, STEPS, CHANNELS, SIZE, SIZE)
    gradient = torch.zeros(LANES, STEPS, SIZE, CHANNELS)
    gradient[LANE, STEP] = torch.tensor([0.25, 1.0, 4.0])
    gains = balanced(axes, [gradient, -gradient]) / axes
    expected = torch.full((LANES, STEPS, CHANNELS), LEAST**-0.5)
    expected[LANE, STEP] = torch.tensor([2.0, 1.0, 0.5])
    assert torch.allclose(gains, expected[..., None, None].expand_as(axes))


def test_without_gradients_axes_stay_finite() -> None:
    """As when the start is already exact."""
    axes = torch.rand(LANES, STEPS, CHANNELS, SIZE, SIZE)
    assert balanced(axes, [torch.zeros(LANES, STEPS, SIZE, CHANNELS)]).isfinite().all()


def test_the_origin_of_the_axes_is_the_start(rows: Rows) -> None:
    axes = torch.rand(LANES, STEPS, CHANNELS, SIZE, SIZE)
    same = rows_at(rows, axes, torch.zeros(LANES, STEPS, SIZE, CHANNELS))
    assert torch.equal(same.outputs, rows.outputs) and torch.equal(same.inputs, rows.inputs)


class Samples(NamedTuple):
    renderer: Renderer
    batch: Batch

    def tuned(self, unfinished: Path, advance: Callable[[float], None]) -> Rows:
        """Four iterations from a line."""
        start = starting_rows("CFCFFF", 3, (1, 32), {}, None)
        return tune(self.renderer, [self.batch] * 4, "CFCFFF", start, 0.01, advance, unfinished)


@pytest.fixture(scope="module")
def samples() -> Samples:
    renderer = Renderer(tiny_dit(), 6, guidance_scale=1.5)
    some = requests([{"class_labels": i} for i in range(2)], 2, 0)
    pictures, path = renderer.walk(some)
    return Samples(renderer, Batch(some, pictures.images, path))


def test_tuning_goes_along_the_axes(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[torch.Tensor] = []

    def spy(start: Rows, axes: torch.Tensor, coordinates: torch.Tensor) -> Rows:
        used.append(axes)
        return rows_at(start, axes, coordinates)

    monkeypatch.setattr(tune_module, "rows_at", spy)
    samples.tuned(tmp_path / "rows", lambda _: None)
    plain, balanced_ones = used[0][0, -1], used[-1][0, -1]
    lengths = (plain.mT @ plain).diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(lengths[:, -1], torch.ones(len(plain)), atol=1e-5), "the longest"
    assert (lengths.amax(-1) > 2).all(), "shorter ones"
    gains = (balanced_ones.norm(dim=(1, 2)) / plain.norm(dim=(1, 2)))[:, None, None]
    assert torch.allclose(balanced_ones, gains * plain, rtol=1e-4)
    assert gains.std() > 0.01


def test_a_resumed_tuning_keeps_its_axes(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere (another batch size, another device) they may come out turned: they are not looked for again."""
    whole = samples.tuned(tmp_path / "whole", lambda _: None)

    def interrupt(loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        samples.tuned(tmp_path / "parts", interrupt)
    monkeypatch.delattr(tune_module, "_axes")
    resumed = samples.tuned(tmp_path / "parts", lambda _: None)
    assert torch.equal(resumed.outputs, whole.outputs) and torch.equal(resumed.inputs, whole.inputs)


def test_tuning_leaves_computed_steps_and_missing_taps_alone(samples: Samples, tmp_path: Path) -> None:
    start = starting_rows("CFCFFF", 3, (1, 32), {}, None)
    tuned = samples.tuned(tmp_path / "rows", lambda _: None)
    outputs, inputs = (
        (new != old).any(-1)[0] for new, old in ((tuned.outputs, start.outputs), (tuned.inputs, start.inputs))
    )
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
