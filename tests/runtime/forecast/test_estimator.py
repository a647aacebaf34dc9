"""Forecasts of one unit: the formulas, and where two of them must agree."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.runtime.units import block_run, module_unit
from tests.tiny import policy
from torch import Tensor

from cachesmith.policies import (
    Band,
    Calibrated,
    Clusters,
    Correction,
    Fitted,
    Fixed,
    Mixed,
    Observed,
    PolicyError,
    Reuse,
    Segments,
    Subspace,
    Taylor,
)
from cachesmith.policies.rows import forecast_weights
from cachesmith.runtime import Forecast, Unit, compile_plan
from cachesmith.runtime.forecast import estimator
from cachesmith.runtime.forecast.estimator import Estimator, observe_scale
from cachesmith.runtime.forecast.history import History
from cachesmith.runtime.tensors.kernels import weighted_sum

STEPS = 12
MASK = "CFFCFCFFFFFF"
COMPUTED = (0, 3, 5)
NOW = 8
SHAPE = (3, 4, 6)


def unit(residual: bool = False, streams: int = 1) -> Unit:
    names = tuple(f"stream{i}" for i in range(streams))
    return block_run(streams=names) if residual else module_unit(streams=names)


def randn(seed: int, dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def outputs_at(step: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return randn(step, dtype)


def inputs_at(step: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return randn(100 + step, dtype)


def run(
    row: Any,
    arrays: Any = None,
    residual: bool = False,
    outputs: Any = outputs_at,
    inputs: Any = inputs_at,
    **parts: Any,
) -> Tensor:
    """Compute the steps `COMPUTED`, forecast `NOW`."""
    chosen = policy(Segments(starts=(0,)), Fixed(mask=MASK), row, arrays, **parts)
    one = unit(residual)
    plan = compile_plan(chosen, chosen.profile(), tuple(map(float, range(STEPS))), (one,))
    history, estimator = History(), Estimator(plan)
    for step in COMPUTED:
        if plan.observes_scale(one):
            observe_scale(history, (outputs(step),), (inputs(step),))
        history.push(step, (outputs(step),), (inputs(step),), plan.taps(one), plan.input_taps(one))
    decision = plan.schedule(one)[NOW]
    assert isinstance(decision, Forecast)
    return estimator.output(one, decision, history, (inputs(NOW),))[0]


def table(name: str, values: Any) -> dict[str, Any]:
    return {name: np.asarray(values, dtype=np.float32)}


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("order", [1, 2])
def test_fitted_with_taylors_weights_is_taylor(order: int, residual: bool) -> None:
    weights = np.zeros((1, STEPS, order + 1))
    weights[0, NOW] = forecast_weights(Taylor(order=order), [5.0, 3.0, 0.0], float(NOW))
    got = run(Fitted(weights="w"), table("w", weights), residual)
    torch.testing.assert_close(got, run(Taylor(order=order), residual=residual), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("taps", [1, 2, 3])
def test_fitted_input_weights(taps: int, residual: bool) -> None:
    rng = np.random.default_rng(0)
    arrays = table("w", rng.normal(size=(1, STEPS, taps))) | table("v", rng.normal(size=(1, STEPS, taps + 1)))
    got = run(Fitted(weights="w", input_weights="v"), arrays, residual)
    newest = [5, 3, 0][:taps]
    expected = sum(w * outputs_at(s) for w, s in zip(arrays["w"][0, NOW].tolist(), newest, strict=True))
    expected = expected + sum(
        v * inputs_at(s) for v, s in zip(arrays["v"][0, NOW].tolist(), [*newest, NOW], strict=True)
    )
    torch.testing.assert_close(got, expected + inputs_at(NOW) if residual else expected)


@pytest.mark.parametrize("residual", [False, True])
def test_one_cluster_is_its_row(residual: bool) -> None:
    ids = {"ids": np.zeros((1, 6), np.int32)}
    got = run(Clusters(ids="ids", rows=(Taylor(order=2),)), ids, residual)
    torch.testing.assert_close(got, run(Taylor(order=2), residual=residual), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 5])
def test_arrays_for_another_number_of_channels(channels: int) -> None:
    """One channel would be spread over all of them without a word."""
    ids = {"ids": np.zeros((1, channels), np.int32)}
    offsets = table("c", np.zeros((1, STEPS, channels)))
    told = f"for {channels} channels and this model has 6; calibrate for this model"
    with pytest.raises(PolicyError, match=told):
        run(Clusters(ids="ids", rows=(Reuse(),)), ids)
    with pytest.raises(PolicyError, match=told):
        run(Fitted(weights="w", ids="ids"), table("w", np.zeros((1, STEPS, 3, 1))) | ids)
    with pytest.raises(PolicyError, match=told):
        run(Reuse(), offsets, correction=Correction(offsets="c"))


def test_every_cluster_follows_its_own_row() -> None:
    ids = {"ids": np.array([[0, 1, 2, 0, 1, 2]], np.int32)}
    pool = (Reuse(), Taylor(order=1), Taylor(order=2))
    got = run(Clusters(ids="ids", rows=pool), ids)
    for cluster, row in enumerate(pool):
        torch.testing.assert_close(got[..., cluster::3], run(row)[..., cluster::3], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("taps", [1, 2, 5])
def test_grouped_weights_are_each_groups_weights(taps: int, residual: bool) -> None:
    """Group by group the same as weights for all channels, also with fewer past outputs than taps."""
    rng = np.random.default_rng(0)
    arrays = table("w", rng.normal(size=(1, STEPS, taps, 3))) | table(
        "v", rng.normal(size=(1, STEPS, taps + 1, 3))
    )
    ids = np.array([[0, 1, 2, 0, 1, 2]], np.int32)
    got = run(Fitted(weights="w", input_weights="v", ids="ids"), {**arrays, "ids": ids}, residual)
    for group in range(3):
        alone = {name: array[..., group] for name, array in arrays.items()}
        expected = run(Fitted(weights="w", input_weights="v"), alone, residual)
        torch.testing.assert_close(got[..., group::3], expected[..., group::3], rtol=1e-5, atol=1e-5)


def test_rows_of_channels_are_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """With strided rows every sum takes several times as long."""
    summed: list[Tensor] = []

    def spy(terms: Any, *others: Any) -> Tensor:
        summed.extend(weight for weight, _ in terms)
        return weighted_sum(terms, *others)

    monkeypatch.setattr(estimator, "weighted_sum", spy)
    ids = {"ids": np.array([[0, 1, 2, 0, 1, 2]], np.int32)}
    run(Clusters(ids="ids", rows=(Reuse(), Taylor(order=1), Taylor(order=2))), ids)
    arrays = table("w", np.ones((1, STEPS, 3, 3))) | table("v", np.ones((1, STEPS, 4, 3)))
    run(Fitted(weights="w", input_weights="v", ids="ids"), arrays | ids)
    assert [row.stride() for row in summed] == [(1,)] * (3 + 3 + 4)


@pytest.mark.parametrize("residual", [False, True])
def test_one_group_is_no_group(residual: bool) -> None:
    weights = np.random.default_rng(0).normal(size=(1, STEPS, 3))
    got = run(
        Fitted(weights="w", ids="ids"),
        table("w", weights[..., None]) | {"ids": np.zeros((1, 6), np.int32)},
        residual,
    )
    expected = run(Fitted(weights="w"), table("w", weights), residual)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_grouped_weights_in_a_subspace_with_a_magnitude() -> None:
    weights = np.zeros((1, STEPS, 2, 1))
    weights[0, NOW, :, 0] = forecast_weights(Taylor(order=1), [5.0, 3.0], float(NOW))
    parts: Any = {"subspace": Subspace(basis="b"), "magnitude": Observed()}
    basis = table("b", np.eye(6, 3)[None])
    arrays = table("w", weights) | basis | {"ids": np.zeros((1, 6), np.int32)}
    got = run(Fitted(weights="w", ids="ids"), arrays, **parts)
    torch.testing.assert_close(got, run(Taylor(order=1), basis, **parts), rtol=1e-5, atol=1e-5)


def test_a_full_rank_subspace_changes_nothing() -> None:
    basis = torch.linalg.qr(randn(7, shape=(6, 6))).Q[None].numpy()
    got = run(Taylor(order=2), table("v", basis), subspace=Subspace(basis="v"))
    torch.testing.assert_close(got, run(Taylor(order=2)), rtol=1e-5, atol=1e-5)


def test_a_subspace_reuses_what_lies_outside() -> None:
    basis = np.eye(6, 2)[None]
    got = run(Taylor(order=2), table("v", basis), subspace=Subspace(basis="v"))
    torch.testing.assert_close(got[..., :2], run(Taylor(order=2))[..., :2])
    torch.testing.assert_close(got[..., 2:], outputs_at(5)[..., 2:])


def rfe(row: Taylor, scale: Tensor) -> Tensor:
    """F0 + s |I - I0| D / |D| as the paper writes it, one sample at a time."""
    increment = run(row) - outputs_at(5)
    moved = inputs_at(NOW) - inputs_at(5)
    return torch.stack(
        [
            outputs_at(5)[i] + s * moved[i].norm() * increment[i] / increment[i].norm()
            for i, s in enumerate(scale)
        ]
    )


def test_a_scale_that_keeps_the_length_is_no_magnitude_rule() -> None:
    """s = |D| / |I - I0| gives the increment its own length."""
    increment = run(Taylor(order=1)) - outputs_at(5)
    one_sample = slice(0, 1)
    scale = increment[one_sample].norm() / (inputs_at(NOW) - inputs_at(5))[one_sample].norm()
    got = run(Taylor(order=1), table("s", [[float(scale)]]), magnitude=Calibrated(scales="s"))
    torch.testing.assert_close(got[one_sample], run(Taylor(order=1))[one_sample], rtol=1e-5, atol=1e-5)


def observed() -> Tensor:
    new, old = outputs_at(5) - outputs_at(3), inputs_at(5) - inputs_at(3)
    scale: Tensor = new.flatten(1).norm(dim=1) / old.flatten(1).norm(dim=1)
    return scale


@pytest.mark.parametrize("order", [1, 2])
def test_rfe_as_published(order: int) -> None:
    row = Taylor(order=order)
    torch.testing.assert_close(run(row, magnitude=Observed()), rfe(row, observed()))


def test_calibrated_and_mixed_scales() -> None:
    bins = table("s", [[9.0, 9.0, 0.7, 9.0]])  # step 8 of 12 lies in the third of four bins
    row = Taylor(order=2)
    constant = torch.full((3,), 0.7, dtype=torch.float64)
    got = run(row, bins, magnitude=Calibrated(scales="s"))
    torch.testing.assert_close(got, rfe(row, constant), rtol=1e-6, atol=1e-6)
    got = run(row, bins, magnitude=Mixed(scales="s"))
    torch.testing.assert_close(got, rfe(row, 0.7 * observed()), rtol=1e-6, atol=1e-6)


def test_the_scale_that_fits_the_increment_changes_nothing() -> None:
    """One sample, since a calibrated scale is shared: s = |D| / |I - I0| is the plain forecast."""

    def first(at: Any) -> Any:
        return lambda step: at(step)[:1]

    row, one = Taylor(order=2), {"outputs": first(outputs_at), "inputs": first(inputs_at)}
    plain = run(row, **one)
    scale = (plain - outputs_at(5)[:1]).norm() / (inputs_at(NOW) - inputs_at(5))[:1].norm()
    got = run(row, table("s", [[scale.item()]]), magnitude=Calibrated(scales="s"), **one)
    torch.testing.assert_close(got, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
def test_rfe_of_order_one_is_exact_on_an_affine_map_with_a_constant_direction(residual: bool) -> None:
    """The paper's proposition: I moves along one line at any speed, O = A I + b."""
    a, b, start, direction = randn(1, shape=(6, 6)), randn(2, shape=(6,)), randn(3), randn(4)
    places = {0: 0.0, 3: 1.0, 5: 1.2, NOW: 4.0}

    def inputs(step: int) -> Tensor:
        return start + places[step] * direction

    def outputs(step: int) -> Tensor:
        return inputs(step) @ a + b

    got = run(Taylor(order=1), residual=residual, outputs=outputs, inputs=inputs, magnitude=Observed())
    torch.testing.assert_close(got, outputs(NOW) + inputs(NOW) if residual else outputs(NOW))


def test_an_input_at_rest_leaves_the_plain_forecast() -> None:
    """A text stream is the same at every step, and its output is not."""
    got = run(Taylor(order=2), inputs=lambda step: inputs_at(0), magnitude=Observed())
    torch.testing.assert_close(got, run(Taylor(order=2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("residual", [False, True])
def test_increments_of_halves_are_wide(dtype: torch.dtype, residual: bool) -> None:
    """Outputs of size 50 that move by 0.5: rounded to half in between, the direction would be lost."""

    def near(step: int) -> Tensor:
        return (50 * randn(1) + 0.5 * randn(step)).to(dtype)

    def halves(step: int) -> Tensor:
        return inputs_at(step, dtype)

    parts: dict[str, Any] = {"magnitude": Observed(), "inputs": halves, "residual": residual}
    got = run(Taylor(order=1), outputs=near, **parts)
    parts["inputs"] = lambda step: halves(step).double()
    exact = run(Taylor(order=1), outputs=lambda step: near(step).double(), **parts)
    assert got.dtype == dtype
    rounding = torch.finfo(dtype).eps * exact.abs().max()
    assert (got.double() - exact).abs().max() <= rounding


def test_a_forecast_never_touches_what_is_remembered() -> None:
    held = {step: outputs_at(step) for step in COMPUTED}
    copies = {step: value.clone() for step, value in held.items()}
    run(Reuse(), outputs=held.__getitem__, residual=True)
    run(Taylor(order=2), outputs=held.__getitem__, magnitude=Observed())
    assert all(torch.equal(held[step], copies[step]) for step in COMPUTED)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("grid", [None, (2, 2), (3, 3)])
def test_a_band_between_no_band_and_reuse(residual: bool, grid: Any) -> None:
    parts: dict[str, Any] = {"residual": residual}
    torch.testing.assert_close(
        run(Taylor(order=2), band=Band(cutoff=0, grid=grid), **parts), run(Taylor(order=2), **parts)
    )
    torch.testing.assert_close(
        run(Taylor(order=2), band=Band(cutoff=1, grid=grid), **parts), run(Reuse(), **parts)
    )
    some = run(Taylor(order=2), band=Band(cutoff=0.4, grid=grid), **parts)
    assert not torch.allclose(some, run(Taylor(order=2), **parts))
    # the mean over the tokens has frequency zero: it is reused
    torch.testing.assert_close(some.mean(1), run(Reuse(), **parts).mean(1))


def test_a_grid_of_other_size_is_left_for_the_row() -> None:
    got = run(Taylor(order=2), band=Band(cutoff=0.4, grid=(3, 3)))
    torch.testing.assert_close(got, run(Taylor(order=2), band=Band(cutoff=0.4)))
    assert not torch.allclose(got, run(Taylor(order=2), band=Band(cutoff=0.4, grid=(2, 2))))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("magnitude", [None, Observed()])
def test_a_correction_is_added_last(residual: bool, magnitude: Any) -> None:
    parts: dict[str, Any] = {"residual": residual, "magnitude": magnitude, "band": Band(cutoff=0.3)}
    offsets = table("c", np.random.default_rng(0).normal(size=(1, STEPS, 6)))
    got = run(Taylor(order=2), offsets, correction=Correction(offsets="c"), **parts)
    torch.testing.assert_close(got, run(Taylor(order=2), **parts) + torch.from_numpy(offsets["c"][0, NOW]))


def test_a_correction_of_a_plain_sum() -> None:
    offsets = table("c", np.ones((1, STEPS, 6)))
    got = run(Taylor(order=1), offsets, residual=True, correction=Correction(offsets="c"))
    torch.testing.assert_close(got, run(Taylor(order=1), residual=True) + 1)
