"""Sums and norms of a forecast: per sample, wide, and the same in the fused kernels."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cachesmith.runtime.tensors.kernels import relational_step, rescale, step_away, weighted_sum
from cachesmith.runtime.tensors.norms import observed_scale, relative_l1, sample_norm

HALVES = [torch.float16, torch.bfloat16]
WIDE = torch.float64


def features(count: int, dtype: torch.dtype = WIDE, batch: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 4, 6, generator=generator, dtype=WIDE).to(dtype) for _ in range(count)]


def pairs(weights: Any, outputs: Any) -> Any:
    return list(zip(weights, outputs, strict=True))


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_weighted_sum(weights: list[float], with_base: bool, with_offset: bool) -> None:
    outputs, (base,) = features(len(weights)), features(1)
    offset = torch.arange(6.0)
    expected = sum(w * o for w, o in pairs(weights, outputs))
    expected = expected + (base if with_base else 0) + (offset if with_offset else 0)
    got = weighted_sum(pairs(weights, outputs), base if with_base else None, offset if with_offset else None)
    torch.testing.assert_close(got, expected)


def test_reuse_hands_the_tensor_back() -> None:
    (output,) = features(1)
    assert weighted_sum([(1.0, output)]) is output
    assert weighted_sum([(1.0, output)], dtype=torch.float32) is not output


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, WIDE])
def test_equal_weights_of_all_channels_are_one_weight(dtype: torch.dtype) -> None:
    outputs, (base,) = features(3, dtype), features(1, dtype)
    weights = [2.0, -1.5, 0.5]
    table = torch.tensor(weights)[:, None].expand(3, 6)
    for start in (None, base):
        by_channel = weighted_sum(pairs(table.unbind(), outputs), start)
        torch.testing.assert_close(by_channel, weighted_sum(pairs(weights, outputs), start))


def test_channels_are_weighed_apart() -> None:
    outputs = features(2)
    ids = torch.tensor([0, 1, 1, 0, 2, 2])
    table = torch.tensor([[2.0, -1.0], [1.0, 0.0], [0.5, 0.5]])
    got = weighted_sum(pairs(table[ids].T.unbind(), outputs))
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
    exact = sum(w * o.double() for w, o in pairs(weights, outputs))
    got = weighted_sum(pairs(weights, outputs), dtype=torch.float32)
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("by_channel", [False, True])
def test_halves_are_within_their_rounding_of_float64(
    dtype: torch.dtype, bound: float, by_channel: bool
) -> None:
    """One rounding, at the end, whatever the number of terms."""
    outputs, (base,) = features(6, dtype), features(1, dtype)
    weights = torch.linspace(-2, 2, 36).reshape(6, 6)
    rows: Any = weights.unbind() if by_channel else weights[:, 0].tolist()
    got = weighted_sum(pairs(rows, outputs), base)
    exact = sum(row * o.double() for row, o in pairs(rows, outputs)) + base.double()
    assert got.dtype == dtype
    assert ((got.double() - exact).abs() <= bound * exact.abs().clamp_min(1e-2)).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_norms_of_halves_do_not_overflow(dtype: torch.dtype) -> None:
    x = torch.full((2, 100, 100), 300.0, dtype=dtype)
    torch.testing.assert_close(sample_norm(x), torch.full((2,), 30000.0))
    assert relative_l1(x, x.float() * 1.5).tolist() == pytest.approx([0.5, 0.5])


@given(st.lists(st.floats(0.01, 1e3), min_size=3, max_size=3))
def test_rescale_gives_the_length_asked_for(lengths: list[float]) -> None:
    step, now, before = features(3)
    scale = torch.tensor(lengths, dtype=WIDE)
    got = rescale(step.clone(), (now, before), scale)
    torch.testing.assert_close(sample_norm(got), scale * sample_norm(now - before))
    assert (torch.cosine_similarity(got.flatten(1), step.flatten(1)) > 1 - 1e-9).all()


def test_rescale_leaves_zero_alone_and_trusts_no_input_at_rest() -> None:
    step, now, before = features(3)
    step[1] = 0
    now[2] = before[2]
    got = rescale(step.clone(), (now, before), 2.0)
    assert not got[1].any() and torch.equal(got[2], step[2])
    assert sample_norm(got)[0] == pytest.approx(2 * sample_norm(now - before)[0])


def test_a_relational_step_written_out() -> None:
    *outputs, now, before, base = features(6)
    weights, scale, offset = (1.7, -0.9, 0.2), torch.tensor([0.5, 1.0, 2.0], dtype=WIDE), torch.arange(6.0)
    got = relational_step(pairs(weights, outputs), outputs[0], (now, before), scale, base, offset)
    step = sum(w * o for w, o in pairs(weights, outputs)) - outputs[0]
    factor = scale * (now - before).flatten(1).norm(dim=1) / step.flatten(1).norm(dim=1)
    torch.testing.assert_close(got, base + outputs[0] + factor[:, None, None] * step + offset)
    torch.testing.assert_close(step_away(pairs(weights, outputs), outputs[0]), step)


def test_samples_do_not_see_each_other() -> None:
    *outputs, moved, before, now = features(5)
    scale = observed_scale(outputs[0], outputs[1], moved, before)
    whole = relational_step(pairs((2.0, -1.0), outputs), outputs[0], (now, moved), scale)
    error = relative_l1(moved, before)
    for i in range(3):
        one = slice(i, i + 1)
        alone = observed_scale(outputs[0][one], outputs[1][one], moved[one], before[one])
        assert alone.item() == pytest.approx(scale[i].item())
        own = [output[one] for output in outputs]
        step = relational_step(pairs((2.0, -1.0), own), own[0], (now[one], moved[one]), alone)
        torch.testing.assert_close(step, whole[one])
        assert relative_l1(moved[one], before[one]).item() == pytest.approx(error[i].item())


def test_an_input_at_rest_gives_no_wild_scale() -> None:
    new, old, moved = features(3, torch.float32)
    scale = observed_scale(new, old, moved, moved.clone())
    assert (scale < 2e6).all() and scale.isfinite().all()
    assert observed_scale(new, old, moved * 0, moved * 0).isfinite().all()


def test_fused_kernels_compute_the_same() -> None:
    """In Triton's interpreter, which has to be chosen before the import: on this processor, in a process of its own."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.runtime.tensors.fused"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["equal"]
