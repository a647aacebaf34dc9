"""What the search compares schedules by: one of the metrics, by name."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from cachesmith.policies import PolicyError
from cachesmith.sampling.lpips import load_lpips
from cachesmith.sampling.metrics import METRICS, Metric
from cachesmith.sampling.pictures import Pictures
from cachesmith.sampling.scores import measure_metric, with_weights


def check_objective(name: str, lpips: Path | None) -> None:
    """Raise `PolicyError` for a metric that is not known, or for LPIPS without its weights."""
    if name not in METRICS:
        raise PolicyError(f"there is no metric {name!r}; choose from {', '.join(METRICS)}")
    if METRICS[name].function is None and lpips is None:
        raise PolicyError(f"the objective {name} needs weights; give their file with --lpips")


@dataclass(frozen=True)
class Objective:
    """name: one of `METRICS`; lpips: the weights of LPIPS, read where they are used."""

    name: str = "psnr"
    lpips: Path | None = None

    def scores(self, reference: Pictures, candidate: Pictures) -> Tensor:
        """Return a score of every sample [N], the higher the better: errors count negative.

        Raises `PolicyError` where the metric does not take what is sampled.
        """
        metric = METRICS[self.name]
        reason = metric.refusal(reference.media, reference.image_samples[0].shape)
        if metric.of == "audio" and reference.audio_samples is None:
            reason = f"{metric.heading} needs sound, which calibration's references do not have"
        if reason:
            raise PolicyError(f"{reason}; choose another --objective")
        values = measure_metric(self._weighted(metric), reference, candidate)
        return values if metric.better == "higher" else -values

    def _weighted(self, metric: Metric) -> Metric:
        if metric.function is not None:
            return metric
        assert self.lpips is not None, "checked before"
        return _lpips(self.lpips)


@lru_cache(maxsize=1)
def _lpips(path: Path) -> Metric:
    return with_weights(load_lpips(path))


PSNR = Objective()
