import sys

import pytest
import torch

from cachesmith.policies import CachesmithError
from cachesmith.sampling.metrics import CEILING, psnr, relative_error, ssim
from cachesmith.sampling.pictures import Pictures
from cachesmith.sampling.scores import bootstrap, compare, summarise


def pictures(seed: int, count: int = 3, size: int = 16) -> Pictures:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, size, size, generator=generator)
    return Pictures(images, torch.randn(count, 2, 8, 8, generator=generator))


def test_identical_pictures_score_the_ceiling() -> None:
    scores = compare(pictures(0), pictures(0))
    assert scores.psnr.tolist() == [CEILING] * 3
    assert scores["ssim"].tolist() == pytest.approx([1.0] * 3)
    assert scores["latent_error"].tolist() == [0.0] * 3
    assert scores.get("lpips") is None


@pytest.mark.parametrize(("error", "decibel"), [(0.1, 20.0), (0.01, 40.0), (1.0, 0.0)])
def test_psnr_of_a_constant_error(error: float, decibel: float) -> None:
    reference = torch.zeros(2, 3, 16, 16)
    assert psnr(reference, reference + error).tolist() == pytest.approx([decibel] * 2)


def test_psnr_is_per_sample() -> None:
    reference = torch.zeros(2, 1, 16, 16)
    candidate = reference.clone()
    candidate[1] += 0.1
    assert psnr(reference, candidate).tolist() == pytest.approx([CEILING, 20.0])
    assert psnr(reference, candidate).dtype == torch.float64


def test_ssim_of_one_sample_does_not_depend_on_the_others() -> None:
    a, b = pictures(0).images, pictures(1).images
    assert ssim(a, b)[1:2].tolist() == pytest.approx(ssim(a[1:2], b[1:2]).tolist())


def test_ssim_refuses_pictures_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="11 x 11 pixels, got 8 x 8"):
        ssim(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))


def test_relative_error() -> None:
    reference = torch.full((2, 4), 2.0)
    assert relative_error(reference, reference * 1.5).tolist() == pytest.approx([0.5, 0.5])
    assert relative_error(torch.zeros(1, 4), torch.zeros(1, 4)).tolist() == [0.0]


def test_what_is_not_finite_scores_badly_instead_of_not_at_all() -> None:
    good, bad = pictures(0), pictures(0)
    bad.images[0], bad.latents[0] = torch.nan, torch.inf
    scores = compare(good, bad)
    assert all(torch.isfinite(v).all() for v in scores.values.values())
    assert scores.psnr[0] < 6 and scores["latent_error"][0] > 0.5
    assert scores.psnr[1] == CEILING
    black = torch.zeros(1, 1, 16, 16)
    assert psnr(black, black * torch.nan).item() == 0.0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(pictures(0, 3), pictures(0, 2))
    with pytest.raises(ValueError, match="no pictures"):
        psnr(torch.zeros(0, 1, 16, 16), torch.zeros(0, 1, 16, 16))


def test_lpips_is_called_when_given() -> None:
    scores = compare(pictures(0), pictures(1), lpips=lambda a, b: (a - b).abs().flatten(1).mean(1))
    assert scores["lpips"].shape == (3,)
    assert summarise(scores, 0).lpips == pytest.approx(float(scores["lpips"].mean()))


def test_bootstrap_covers_the_mean_and_repeats() -> None:
    values = torch.randn(64, generator=torch.Generator().manual_seed(0)) + 30
    low, high = bootstrap(values, seed=1)
    assert low < values.mean() < high
    # the normal approximation: 1.96 standard errors to either side
    assert high - low == pytest.approx(2 * 1.96 * float(values.std()) / 8, rel=0.15)
    assert (low, high) == bootstrap(values, seed=1) != bootstrap(values, seed=2)


def test_bootstrap_of_one_value_is_that_value() -> None:
    assert bootstrap(torch.tensor([5.0]), seed=0) == (5.0, 5.0)


def test_summary_is_what_a_policy_stores() -> None:
    scores = compare(pictures(0), pictures(1))
    quality = summarise(scores, seed=0)
    assert quality.samples == len(scores) == 3
    assert quality.psnr == pytest.approx(float(scores.psnr.mean()))
    assert quality.psnr_low <= quality.psnr <= quality.psnr_high


def test_missing_torchmetrics_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(CachesmithError, match=r"cachesmith\[calibrate\]"):
        ssim(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16))
