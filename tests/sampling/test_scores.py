"""The table of metrics, and what a policy file keeps of quality."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.tiny import tiny_dit, tiny_flux

from cachesmith.policies import Quality, Summary
from cachesmith.sampling import metrics as table
from cachesmith.sampling.metrics import METRICS, Metric, cells, frame_change, headings, shown, worst_frame
from cachesmith.sampling.pictures import Pictures
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request, differing_arguments
from cachesmith.sampling.scores import bootstrap, compare, summarise, tell_left_out

OLD = Quality(samples=2, psnr=31.0, psnr_low=30.0, psnr_high=32.0, ssim=0.9, latent_error=0.1)


def pictures(*shape: int, seed: int = 0, **others: Any) -> Pictures:
    drawn = torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
    return Pictures(drawn, drawn, **others)


def test_a_metric_more_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured, kept by name and shown, and nothing else has to know of it."""

    def largest(reference: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
        return (reference - candidate).abs().flatten(1).amax(1)

    monkeypatch.setitem(METRICS, "largest", Metric("largest", "largest", ".3f", "lower", largest))
    a, b = pictures(3, 1, 16, 16), pictures(3, 1, 16, 16, seed=1)
    quality = summarise(compare(a, b), 0)
    expected = (a.images - b.images).abs().flatten(1).amax(1)
    assert quality.metrics["largest"].mean == pytest.approx(float(expected.mean()))
    assert quality.metrics["largest"].worst == pytest.approx(float(expected.max()))
    chosen = shown([quality])
    assert headings(chosen)[-1] == "largest" and cells(quality, chosen)[-1] == f"{expected.mean():.3f}"


def test_the_worst_sample_and_the_share_above_a_floor() -> None:
    a = pictures(4, 1, 16, 16)
    noise = torch.tensor([0.001, 0.01, 0.02, 0.2])[:, None, None, None]
    b = Pictures(a.images + noise, a.latents + noise)
    quality = summarise(compare(a, b), 0, floor=35.0)
    assert quality.worst("psnr") == pytest.approx(13.979, abs=1e-3)
    assert (quality.floor, quality.above_floor) == (35.0, 0.5)
    assert quality.worst("latent_error") == max(compare(a, b)["latent_error"].tolist())
    summary = quality.metrics["ssim"]
    assert summary.worst < summary.low <= summary.mean == quality.ssim


def test_videos_are_as_bad_as_their_worst_frame() -> None:
    a = pictures(2, 4, 1, 16, 16, media="video").images
    b = a.clone()
    b[0, 2] += 0.1
    assert worst_frame(a, b).tolist() == pytest.approx([20.0, 100.0])
    # two of three changes are off by 0.1, halved to fit into [0, 1]
    expected = -10 * torch.tensor(2 / 3 * 0.05**2).log10()
    assert frame_change(a, b).tolist() == pytest.approx([float(expected), 100.0])


def test_a_constant_shift_changes_nothing_from_frame_to_frame() -> None:
    a = pictures(1, 4, 1, 16, 16, media="video").images / 2
    assert frame_change(a, a + 0.25).item() > 100 - 1e-9


def test_what_a_metric_does_not_take_is_left_out_and_told() -> None:
    a, b = pictures(2, 3, 8, 8), pictures(2, 3, 8, 8, seed=1)
    quality = summarise(compare(a, b), 0)
    assert quality.ssim is None and "ssim" not in quality.metrics
    assert METRICS["ssim"].refusal("latent", (4, 4)) == "SSIM takes image and video, not latent"
    assert METRICS["ssim"].refusal("video", (5, 3, 16, 16)) == ""
    renderer, wanted = Renderer(tiny_flux(), 8), [Request({"height": 8, "width": 16}, 0)]
    with pytest.warns(
        RuntimeWarning, match="SSIM needs pictures of at least 11 x 11 pixels, got 8 x 16; it is left"
    ):
        tell_left_out(renderer, wanted)
    assert Renderer(tiny_dit(), 8).size(Request({"class_labels": 1}, 0)) == (8, 8)
    tell_left_out(renderer, [Request({"height": 16, "width": 16}, 0), Request({}, 0)])


def test_samples_that_blew_up_have_a_score_in_every_metric() -> None:
    for shape, media in (
        ((2, 3, 16, 16), "image"),
        ((2, 4, 3, 16, 16), "video"),
        ((2, 2, 50), "audio"),
        ((2, 4, 8), "latent"),
    ):
        a, b = (pictures(*shape, seed=seed, media=media) for seed in (0, 1))
        b.images[0] = torch.nan
        scores = compare(a, b, lpips=lambda x, y: (x - y).abs().flatten(1).mean(1))
        assert all(torch.isfinite(values).all() for values in scores.values.values()), media
        assert summarise(scores, 0).psnr < 100


def test_latents_are_scaled_by_the_range_of_the_reference() -> None:
    a = pictures(1, 4, 8, 8, media="latent")
    large = Pictures(a.images * 50 - 7, a.latents * 50 - 7, "latent")
    noisy = Pictures(large.images + 1.0, large.latents + 1.0, "latent")
    small = Pictures(a.images + 1 / 50, a.latents, "latent")
    assert compare(large, noisy).psnr.item() == pytest.approx(compare(a, small).psnr.item(), abs=1e-4)


def test_parts_are_named_by_what_differs() -> None:
    wanted = [Request({"height": 32 + 16 * (i % 2), "width": 32, "guidance_scale": 2.0}, i) for i in range(4)]
    assert differing_arguments(wanted) == ("height=32", "height=48", "height=32", "height=48")
    scores = compare(pictures(4, 1, 16, 16), pictures(4, 1, 16, 16, seed=1))
    assert (
        summarise(scores, 0).parts
        == {}
        == summarise(scores, 0, parts=differing_arguments(wanted[:1] * 4)).parts
    )
    quality = summarise(scores, 0, parts=differing_arguments(wanted))
    assert quality.parts["height=48"].mean == pytest.approx(float(scores.psnr[[1, 3]].mean()))


def test_bootstrap_of_equal_values_is_that_value() -> None:
    assert bootstrap(torch.full((8,), 3.0), seed=0) == (3.0, 3.0)


def test_older_files_are_written_as_they_were() -> None:
    fields = {"samples", "psnr", "psnr_low", "psnr_high", "ssim", "latent_error", "lpips"}
    assert set(OLD.model_dump(mode="json")) == fields and Quality.model_validate(OLD.model_dump()) == OLD
    assert OLD.worst("psnr") is None and OLD.mean("psnr") == 31.0


def test_newer_ones_are_read_back() -> None:
    quality = summarise(compare(pictures(3, 1, 16, 16), pictures(3, 1, 16, 16, seed=1)), 0)
    assert Quality.model_validate_json(quality.model_dump_json()) == quality


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {"psnr": Summary(mean=30.0, low=1.0, high=2.0, worst=0.0)}},
        {"floor": 30.0},
        {"floor": 30.0, "above_floor": 1.5},
        {"metrics": {"a/b": Summary(mean=30.0, low=1.0, high=2.0, worst=0.0)}},
        {"parts": {"a\nb": Summary(mean=30.0, low=1.0, high=2.0, worst=0.0)}},
    ],
)
def test_quality_that_contradicts_itself_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Quality.model_validate({**OLD.model_dump(), **changes})


def test_the_table_needs_no_torch() -> None:
    code = "import sys; import cachesmith.sampling.metrics; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert table.METRICS["psnr"].text(None) == "-"
