"""Scores of samples, one by one, and what a policy file keeps of them: means with intervals, the worst, a share."""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cachesmith.policies import Quality, Summary
from cachesmith.sampling.metrics import METRICS, Metric, Perceptual, needing_calibrate, over_frames, paired
from cachesmith.sampling.pictures import Pictures, Samples
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request

DRAWS = 2000
"""Bootstrap resamples."""
_FLOOR = 30.0
"""PSNR in dB; the share of samples above it is kept."""


@dataclass(frozen=True, eq=False)
class Scores:
    """values: metric -> one value a sample, [N], float64; metrics that do not take the samples are not there."""

    values: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.psnr)

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def get(self, name: str) -> Tensor | None:
        """Return the values of one metric, None where it was not measured."""
        return self.values.get(name)

    @property
    def psnr(self) -> Tensor:
        """PSNR in dB."""
        return self.values["psnr"]


def compare(reference: Pictures, candidate: Pictures, lpips: Perceptual | None = None) -> Scores:
    """Score every candidate sample against the reference sample of the same place, by all metrics that take them.

    Samples may differ in size from each other. lpips: the network, if LPIPS is to be measured. Raises `ValueError`
    where the two differ in shape, `CachesmithError` where torchmetrics is missing.
    """
    table = METRICS if lpips is None else METRICS | {"lpips": with_weights(lpips)}
    return Scores(
        {name: measure_metric(m, reference, candidate) for name, m in table.items() if _takes(m, reference)}
    )


def with_weights(lpips: Perceptual) -> Metric:
    """Return LPIPS by a network, which is given finite float32."""
    return replace(
        METRICS["lpips"],
        function=over_frames(lambda a, b: lpips(*(images.float() for images in paired(a, b)))),
    )


def measure_metric(metric: Metric, reference: Pictures, candidate: Pictures) -> Tensor:
    """Return one metric of every sample, [N], float64; one sample is widened at a time."""
    assert metric.function is not None, f"{metric.name} needs weights"
    function = metric.function
    a, b = _samples(metric, reference), _samples(metric, candidate)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} pictures cannot be compared")
    if not len(a):
        raise ValueError("there are no pictures to compare; sample at least one")
    seen_in = reference.media if metric.of == "images" else "image"
    pairs = (_unit(seen_in, first, second) for first, second in zip(a, b, strict=True))
    return torch.cat(
        [function(first[None], second[None]).reshape(1).double().cpu() for first, second in pairs]
    )


def tell_left_out(renderer: Renderer, requests: Sequence[Request]) -> None:
    """Warn, before anything is sampled, of metrics that do not take pictures of these sizes, where sizes are known."""
    sizes = {size for request in requests if (size := renderer.size(request)) is not None}
    for size in sorted(sizes):
        for metric in METRICS.values():
            if "image" in metric.media and (reason := metric.refusal("image", size)):
                warnings.warn(f"{reason}; it is left out", RuntimeWarning, stacklevel=2)


def bootstrap(values: Tensor, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean of `values` [N]; the same for the same seed."""
    data = values.double().cpu().numpy()
    if len(data) < 2:
        return float(data[0]), float(data[0])
    with needing_calibrate():
        from scipy import stats
    found = stats.bootstrap(
        (data,), lambda x, axis: x.mean(axis=axis), n_resamples=DRAWS, method="percentile", random_state=seed
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def summarise(
    scores: Scores, seed: int, *, floor: float = _FLOOR, parts: Sequence[str] | None = None
) -> Quality:
    """Return what a policy file keeps of the scores.

    floor: PSNR in dB above which samples are counted. parts: a name a sample, by which PSNR is given apart as well (see
    `requests.parts_of`).
    """
    metrics = {name: _summary(name, values, seed) for name, values in scores.values.items()}
    means = {name: metrics[name].mean for name in ("ssim", "lpips") if name in metrics}
    return Quality(
        samples=len(scores),
        psnr=metrics["psnr"].mean,
        psnr_low=metrics["psnr"].low,
        psnr_high=metrics["psnr"].high,
        ssim=means.get("ssim"),
        latent_error=metrics["latent_error"].mean,
        lpips=means.get("lpips"),
        floor=floor,
        above_floor=float((scores.psnr >= floor).double().mean()),
        metrics=metrics,
        parts={name: _summary("psnr", scores.psnr[places], seed) for name, places in _places(parts or ())},
    )


def _summary(name: str, values: Tensor, seed: int) -> Summary:
    low, high = bootstrap(values, seed)
    return Summary(mean=float(values.mean()), low=low, high=high, worst=METRICS[name].worst(values.tolist()))


def _places(parts: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    places: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(parts):
        places[name].append(place)
    if len(places) > 1:
        yield from ((name or "others", found) for name, found in places.items())


def _takes(metric: Metric, reference: Pictures) -> bool:
    if metric.function is None or (metric.of == "audio" and reference.audio_samples is None):
        return False
    shapes = {tuple(sample.shape) for sample in reference.image_samples}
    return not any(metric.refusal(reference.media, shape) for shape in shapes)


def _samples(metric: Metric, pictures: Pictures) -> Samples:
    of = {
        "images": pictures.image_samples,
        "latents": pictures.latent_samples,
        "audio": pictures.audio_samples,
    }
    samples = of[metric.of]
    assert samples is not None
    return samples


def _unit(media: str, reference: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
    """Move both to [0, 1], as metrics take them: sound from [-1, 1], latents by the range of the reference."""
    if media == "audio":
        return reference / 2 + 0.5, candidate / 2 + 0.5
    if media == "latent":
        finite = reference[reference.isfinite()].double()
        low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
        reach = max(float(high - low), 1e-12)
        return (reference.double() - low) / reach, (candidate.double() - low) / reach
    return reference, candidate
