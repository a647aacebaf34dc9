"""Profiles: how a pipeline's denoisers are sampled, and what came of it when that was measured."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cachesmith.policies.base import MAX_DENOISERS, MAX_GROUPS, Frozen, Grown, Name, Text
from cachesmith.policies.forecaster import Forecaster, by_step
from cachesmith.policies.gate import Gate
from cachesmith.policies.units import Stack, Units


class Summary(Frozen):
    """One metric over all samples: mean, 95 % bootstrap interval of the mean, and the worst sample."""

    mean: float
    low: float
    high: float
    worst: float


class Quality(Grown):
    """Error against the uncached picture of the same seed, on held-out prompts.

    `psnr_low` and `psnr_high` bound the 95 % bootstrap interval of the mean, in dB. `ssim` is None where the samples
    are no pictures. `metrics`: every metric that was measured, by name; `above_floor`: share of the samples whose PSNR
    is at least `floor` dB; `parts`: PSNR of the samples of each size or guidance, where they differ. Files of before
    those three were kept have none of them, and are written without them again.
    """

    LATER = ("floor", "above_floor", "metrics", "parts")

    samples: Annotated[int, Field(ge=1)]
    psnr: float
    psnr_low: float
    psnr_high: float
    ssim: float | None = None
    latent_error: Annotated[float, Field(ge=0)]
    lpips: float | None = None
    floor: float | None = None
    above_floor: Annotated[float, Field(ge=0, le=1)] | None = None
    metrics: dict[Name, Summary] = Field(default_factory=dict, max_length=64)
    parts: dict[Text, Summary] = Field(default_factory=dict, max_length=1000)

    @model_validator(mode="after")
    def _once(self) -> "Quality":
        for name in ("psnr", "ssim", "latent_error", "lpips"):
            if name in self.metrics and self.metrics[name].mean != getattr(self, name):
                raise ValueError(f"{name} and metrics.{name}.mean differ")
        if (self.floor is None) != (self.above_floor is None):
            raise ValueError("floor and above_floor belong together; give both or none")
        return self

    def mean(self, name: str) -> float | None:
        """Mean of one metric, None where it was not measured."""
        value: float | None = self.metrics[name].mean if name in self.metrics else getattr(self, name, None)
        return value

    def worst(self, name: str) -> float | None:
        """One metric of the worst sample, None where it was not kept."""
        return self.metrics[name].worst if name in self.metrics else None


class Sampled(Grown):
    """How one denoiser is sampled: complete by itself. Masks have a letter for every step of the run; - where another
    denoiser is called."""

    units: Units = Stack()
    axis: Literal["step", "sigma", "log-snr"] = "step"
    gate: Gate
    forecaster: Forecaster = Forecaster()
    overrides: dict[Name, Forecaster] = Field(default_factory=dict, max_length=MAX_GROUPS)


class DenoiserProfile(Sampled):
    """How a further denoiser of the pipeline is sampled."""


class Profile(Sampled):
    """One point of the speed/quality front: the main denoiser, and in `denoisers` the further ones by name.

    `nfc` is that of the whole run, over all denoisers.
    """

    LATER = ("denoisers",)

    denoisers: dict[Name, DenoiserProfile] = Field(default_factory=dict, max_length=MAX_DENOISERS)
    nfc: Annotated[float, Field(ge=0)] | None = None
    speedup: Annotated[float, Field(ge=0)] | None = None
    measured_speedup: Annotated[float, Field(ge=0)] | None = None
    quality: Quality | None = None


def has_fitted(sampled: Sampled) -> bool:
    """Whether any forecaster has weights or a correction fitted per step."""
    return any(by_step(f) for f in (sampled.forecaster, *sampled.overrides.values()))
