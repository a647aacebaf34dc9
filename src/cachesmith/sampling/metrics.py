"""The metrics: how far samples are from the uncached ones of the same seeds. A new one is one entry of `METRICS`.

Formulas take two batches [N, ...] of one shape and give float64 [N]. Values that are not finite count as the farthest a
value can be, so that a run that blew up gets a bad score instead of none. Torch is loaded where it is used only: what
shows figures needs the table alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cachesmith.policies import CachesmithError

if TYPE_CHECKING:
    from torch import Tensor

    from cachesmith.policies import Quality
    from cachesmith.sampling.pictures import Media

CEILING = 100.0
"""PSNR in dB of identical pictures."""
_WINDOW = 11
"""Pixels on a side of SSIM's Gaussian window."""
_TINY = 1e-300
_VIDEOS = 5
"""Dimensions of a batch of videos."""

Formula = Callable[["Tensor", "Tensor"], "Tensor"]
"""Reference and candidate, [N, ...] each, to one value a sample, [N]."""

Perceptual = Formula
"""LPIPS with the caller's weights: two [N, C, H, W] in [0, 1] to distances [N]."""


@contextmanager
def needing_calibrate() -> Iterator[None]:
    """Say how to install what an import in the block misses."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise CachesmithError(
            f"{error.name} is not installed; install it with: pip install 'cachesmith[calibrate]'"
        ) from None


def psnr(reference: "Tensor", candidate: "Tensor") -> "Tensor":
    """Return the PSNR in dB of every sample, [N, ...] in [0, 1]: -10 lg MSE; identical ones score `CEILING`."""
    return _decibels(mean_square(reference, candidate))


def mean_square(reference: "Tensor", candidate: "Tensor") -> "Tensor":
    """Return the mean squared error of every sample, [N, ...]; of videos one frame is widened at a time."""
    if reference.ndim == _VIDEOS:
        return by_frame(mean_square, reference, candidate).mean(1)
    images, others = paired(reference, candidate)
    return (images - others).square().flatten(1).mean(1)


def by_frame(formula: Formula, reference: "Tensor", candidate: "Tensor") -> "Tensor":
    """Return a formula of pictures for every frame, [N, F, C, H, W] -> [N, F]; a video in float64 would be large."""
    import torch

    _check_pair(reference, candidate)
    pairs = zip(reference.unbind(1), candidate.unbind(1), strict=True)
    return torch.stack([formula(a, b) for a, b in pairs], 1)


def ssim(reference: "Tensor", candidate: "Tensor") -> "Tensor":
    """Return the structural similarity of every sample, [N, C, H, W] in [0, 1] (Wang et al. 2004).

    In float32: on a CPU 14 times as fast as float64, and 1e-7 from it.
    """
    images, others = (finite.float() for finite in paired(reference, candidate))
    if min(images.shape[-2:]) < _WINDOW:
        size = " x ".join(str(n) for n in images.shape[-2:])
        raise ValueError(f"SSIM needs pictures of at least {_WINDOW} x {_WINDOW} pixels, got {size}")
    with needing_calibrate():
        from torchmetrics.functional.image import structural_similarity_index_measure
    value = structural_similarity_index_measure(others, images, reduction="none", data_range=1.0)
    assert not isinstance(value, tuple)
    return value.flatten().double()


def relative_error(reference: "Tensor", candidate: "Tensor") -> "Tensor":
    """Return |a - b| / |a| (Euclidean norms) of every sample, [N, ...]."""
    a, b = paired(reference, candidate)
    norm = a.flatten(1).square().sum(1).sqrt().clamp(min=_TINY)
    return (a - b).flatten(1).square().sum(1).sqrt() / norm


def worst_frame(reference: "Tensor", candidate: "Tensor") -> "Tensor":
    """Return the PSNR in dB of the worst frame of every video, [N, F, C, H, W] in [0, 1]."""
    return by_frame(psnr, reference, candidate).min(1).values


def frame_change(reference: "Tensor", candidate: "Tensor") -> "Tensor":
    """Return the PSNR in dB of what changes from frame to frame, x_f - x_(f-1), halved to span 1; flicker lowers it."""
    _check_pair(reference, candidate)

    def change(frame: int) -> "Tensor":
        (a, b), (c, d) = (paired(reference[:, f], candidate[:, f]) for f in (frame - 1, frame))
        return (((c - a) - (d - b)) / 2).square().flatten(1).mean(1)

    frames = range(1, reference.shape[1])
    return _decibels(sum((change(frame) for frame in frames[1:]), change(frames[0])) / len(frames))


def paired(a: "Tensor", b: "Tensor") -> "tuple[Tensor, Tensor]":
    """Return both in float64 with finite values. Raises `ValueError` where they cannot be compared."""
    _check_pair(a, b)
    first, second = (t.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for t in (a, b))
    # what is not finite is as wrong as a pixel can be
    return first, second.where(b.isfinite(), (first < 0.5).double())


def _check_pair(a: "Tensor", b: "Tensor") -> None:
    if a.shape != b.shape:
        raise ValueError(f"pictures of shape {tuple(a.shape)} and {tuple(b.shape)} cannot be compared")
    if len(a) == 0:
        raise ValueError("there are no pictures to compare; sample at least one")


def _decibels(error: "Tensor") -> "Tensor":
    return (-10 * error.log10()).clamp(max=CEILING)


def over_frames(formula: Formula) -> Formula:
    """Return a formula of pictures that takes videos, too: the mean over their frames."""

    def mean(reference: "Tensor", candidate: "Tensor") -> "Tensor":
        if reference.ndim < _VIDEOS:
            return formula(reference, candidate)
        return by_frame(formula, reference, candidate).mean(1)

    return mean


@dataclass(frozen=True)
class Metric:
    """One column of every table.

    function: None where it needs weights, which the caller of `compare` gives. of: what is compared. media: samples it
    takes, which it sees in [0, 1]: audio moved there from [-1, 1], latents by the range of the reference. least: pixels
    on the shorter side, or frames, that it needs.
    """

    name: str
    heading: str
    format: str
    better: Literal["higher", "lower"]
    function: Formula | None
    of: Literal["images", "latents", "audio"] = "images"
    media: "tuple[Media, ...]" = ("image", "video", "audio", "latent")
    least_pixels: int = 1
    least_frames: int = 1

    def refusal(self, media: "Media", shape: Sequence[int]) -> str:
        """Say why samples of one medium and shape are not measured; empty where they are."""
        if media not in self.media:
            return f"{self.heading} takes {' and '.join(self.media)}, not {media}"
        if self.least_pixels > 1 and min(shape[-2:]) < self.least_pixels:
            least, size = self.least_pixels, " x ".join(str(n) for n in shape[-2:])
            return f"{self.heading} needs pictures of at least {least} x {least} pixels, got {size}"
        if self.least_frames > 1 and shape[0] < self.least_frames:
            return f"{self.heading} needs at least {self.least_frames} frames, got {shape[0]}"
        return ""

    def worst(self, values: Sequence[float]) -> float:
        """Return the worst of some values."""
        return min(values) if self.better == "higher" else max(values)

    def text(self, value: float | None) -> str:
        """Return a value as tables show it."""
        return "-" if value is None else format(value, self.format)


SEEN: "tuple[Media, ...]" = ("image", "video")

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("psnr", "PSNR dB", ".2f", "higher", psnr),
        Metric("ssim", "SSIM", ".4f", "higher", over_frames(ssim), media=SEEN, least_pixels=_WINDOW),
        Metric("lpips", "LPIPS", ".4f", "lower", None, media=SEEN),
        Metric("latent_error", "latent error", ".4f", "lower", relative_error, of="latents"),
        Metric("worst_frame", "worst frame dB", ".2f", "higher", worst_frame, media=("video",)),
        Metric("frame_change", "change dB", ".2f", "higher", frame_change, media=("video",), least_frames=2),
        Metric("audio_error", "audio error", ".4f", "lower", relative_error, of="audio", media=("video",)),
    )
}
"""Every metric by name, in the order of the tables."""


def shown(qualities: "Sequence[Quality | None]") -> list[Metric]:
    """Return the metrics that at least one of some qualities has, in the order of the tables."""
    return [
        m for name, m in METRICS.items() if any(q is not None and q.mean(name) is not None for q in qualities)
    ]


def headings(metrics: Sequence[Metric]) -> tuple[str, ...]:
    """Return the headings of `cells`."""
    first, *others = metrics or [METRICS["psnr"]]
    return f"{first.heading} (95 %)", "worst", *(metric.heading for metric in others)


def cells(quality: "Quality | None", metrics: Sequence[Metric]) -> tuple[str, ...]:
    """Return one profile's quality as text: PSNR with its interval, that of the worst sample, the other metrics."""
    first, *others = metrics or [METRICS["psnr"]]
    if quality is None:
        return ("-",) * (2 + len(others))
    return (
        f"{first.text(quality.psnr)} ({first.text(quality.psnr_low)} to {first.text(quality.psnr_high)})",
        first.text(quality.worst(first.name)),
        *(metric.text(quality.mean(metric.name)) for metric in others),
    )
