"""What the report says: measured values and encoded media, and nothing of how a calibration finds them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Literal

from cachesmith.calibrate.report.media import EmbeddedMedia
from cachesmith.policies import Quality

Family = Literal["profile", "fewer steps", "even steps", "TaylorSeer", "DBCache"]
"""DBCache is what cache-dit does by default; even steps, a control, have a profile's first and last computed steps."""


@dataclass(frozen=True)
class Measurement:
    """One way to sample, on the samples that all of the front share.

    `seconds` a sample (a median), `psnr` in dB with the 95 % bootstrap interval of its mean.
    """

    name: str
    family: Family
    nfc: float
    seconds: float
    psnr: float
    psnr_low: float
    psnr_high: float


@dataclass(frozen=True)
class ReportSample:
    """A held-out sample of one profile beside the uncached one of the same prompt and seed.

    `difference` is |cached - uncached| times `gain`. `errors`: relative L2 error of the sampler's state after every
    step.
    """

    rank: Literal["worst", "median", "best"]
    prompt: str
    seed: int
    psnr: float
    uncached: EmbeddedMedia
    cached: EmbeddedMedia
    difference: EmbeddedMedia
    gain: float
    errors: tuple[float, ...]


@dataclass(frozen=True)
class ProfileReport:
    """One profile, measured on all held-out samples.

    mask: a letter a step, see `Fixed`; where a gate decides while sampling (`dynamic`), what it was on these samples.
    psnr: dB of every held-out sample. losses: dB on the fitting samples after every iteration; empty where nothing was
    fitted.
    """

    name: str
    nfc: float
    seconds: float
    mask: str
    dynamic: bool
    quality: Quality
    psnr: tuple[float, ...]
    samples: tuple[ReportSample, ...]
    losses: tuple[float, ...] = ()
    source: str = ""


@dataclass(frozen=True)
class Appendix:
    """A further figure."""

    title: str
    picture: EmbeddedMedia
    text: str = ""


@dataclass(frozen=True)
class ReportData:
    """All that the report shows.

    facts: what was calibrated, on what, in words. calibration_seconds: wall time over all runs of this calibration.
    accelerators: GPUs it held; 0 on a CPU. dashboard: the command that opens its Optuna studies, if it has any.
    measured_on: how many samples the front stands for, and how they were timed.
    """

    name: str
    policy_id: str
    steps: int
    facts: Mapping[str, str]
    calibration_seconds: float
    accelerators: int
    command: str
    dashboard: str | None
    uncached_seconds: float
    measured_on: str
    measurements: tuple[Measurement, ...]
    profiles: tuple[ProfileReport, ...]
    notes: tuple[str, ...] = ()
    appendix: tuple[Appendix, ...] = field(default=())

    def break_even(self, profile: ProfileReport) -> int | None:
        """Samples after which the calibration has paid for itself; None where the profile saves no time."""
        saved = self.uncached_seconds - profile.seconds
        return ceil(self.calibration_seconds / saved) if saved > 0 else None
