"""L2P's matrix: read as numbers, unrolled to what its closed loop computes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import sample_flux, tiny_flux

from cachesmith.policies import Fixed, PolicyError
from cachesmith.policies.convert import import_settings, read_settings
from cachesmith.runtime import apply

CORNER = [
    [0.7054122686386108, 0.0, 0.0, 0.0],
    [0.05200431868433952, 0.8737428784370422, 0.0, 0.0],
    [0.06468650698661804, -0.23121902346611023, 1.1418529748916626, 0.0],
    [0.01855253055691719, 0.10034073889255524, -0.5023574233055115, 1.3775746822357178],
]
"""The first rows that Aredstone/L2P-Cache published at 3df73ce4."""


def triangle(size: int, seed: int = 0) -> list[list[float]]:
    noise = np.random.default_rng(seed).normal(size=(size, size)) * 0.1
    return [[float(x) for x in row] for row in np.tril(noise + np.eye(size))]


def closed_loop(mask: str, matrix: Any, outputs: Any) -> Any:
    """What L2P's code does: forecasts join the history, and the history's length picks the row."""
    history: list[Any] = []
    for step, letter in enumerate(mask):
        past = sum((w * x for w, x in zip(matrix[step - 1], history, strict=False)), start=0 * outputs[0])
        history.append(outputs[step] if letter == "C" else past)
    return history


def test_the_published_rows_are_read() -> None:
    policy = import_settings(CORNER, "l2p", mask="CCCF").policy
    rows = policy.arrays["final/weights"][0, 3]
    assert rows.tolist() == pytest.approx([1.1418529748916626, -0.23121902346611023, 0.06468650698661804])
    assert policy.arrays["final/input_weights"][0, 3].tolist() == pytest.approx([*rows, -1.0])


def test_forecasts_of_forecasts_are_unrolled() -> None:
    """On a model: what enters the output head follows L2P's loop over what the blocks put out."""
    mask, steps = "CCFFCFCFFF", 10
    matrix = triangle(steps)
    policy = import_settings({"weights": matrix, "mask": mask}, "l2p").policy
    pipe, features = tiny_flux(), list[torch.Tensor]()
    handle = pipe.transformer.norm_out.register_forward_pre_hook(
        lambda _, given: features.append(given[0].clone())
    )
    with apply(pipe, policy) as session:
        sample_flux(pipe, steps=steps)
    handle.remove()
    expected = closed_loop(mask, matrix, [feature.double() for feature in features])
    assert not session.stats.fallbacks
    for step, feature in enumerate(features):
        assert torch.allclose(feature.double(), expected[step], atol=1e-4), step


def test_l2ps_own_schedule_of_interval_ten() -> None:
    full = [0, 1, 2, 4, 12, 24, 38]
    mask = "".join("C" if step in full else "F" for step in range(50))
    converted = import_settings({"weights": triangle(50), "mask": mask}, "l2p")
    gate = converted.policy.profile().gate
    assert isinstance(gate, Fixed) and gate.mask == mask and "output head" in converted.notes[0]


def test_code_is_not_executed(tmp_path: Path) -> None:
    """L2P's own loader evaluates the file."""
    target = tmp_path / "owned"
    text = f"[[__import__('pathlib').Path({str(target)!r}).touch(), 0], [1, 1]]"
    with pytest.raises(PolicyError):
        import_settings(read_settings(text), "l2p", mask="CC")
    assert not target.exists()


@pytest.mark.parametrize(
    ("raw", "mask", "said"),
    [
        (CORNER, None, "--mask"),
        (CORNER, "FCCC", "mask"),
        (CORNER, "CCCFFF", "4 rows for 6 steps"),
        ([[1.0, 0.5], [1.0, 1.0]], "CF", "not there yet"),
        ([[1.0], [1.0, 1.0]], "CF", "1 of 2 numbers"),
        ([[1.0, "x"], [1.0, 1.0]], "CF", "weights"),
        ([[float("inf"), 0.0], [1.0, 1.0]], "CF", "weights"),
        ("nonsense", "CF", "weights"),
    ],
)
def test_what_is_refused(raw: Any, mask: str | None, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        import_settings(raw, "l2p", mask=mask)


def test_other_formats_take_no_mask() -> None:
    with pytest.raises(PolicyError, match="leave --mask out"):
        import_settings("1100", "mask", mask="CCFF")
