"""Report data without a calibration: pictures, videos and sound from a seed."""

from typing import Any

import torch
from torch import Tensor

from cachesmith.calibrate.report.data import Appendix, Measurement, ProfileReport, ReportData, ReportSample
from cachesmith.calibrate.report.media import encode_media, visible_difference
from cachesmith.policies import Quality

MASK = "CCFFHFFCFF"
PROMPT = 'a "red" <b>bag</b> & <script>document.title = "taken over"</script>'


def tensor(kind: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = {"picture": (3, 32, 48), "video": (8, 3, 32, 48), "audio": (1, 4000)}[kind]
    return torch.rand(shape, generator=generator)


def sample(kind: str, rank: Any, psnr: float) -> ReportSample:
    uncached = tensor(kind, 0)
    cached = uncached + 0.01 * tensor(kind, 1)
    apart, gain = visible_difference(uncached, cached)
    errors = tuple(0.0 if step < 2 else 0.01 * step for step in range(len(MASK)))
    return ReportSample(
        rank, PROMPT, 7, psnr, encode_media(uncached), encode_media(cached), encode_media(apart), gain, errors
    )


def profile(name: str, kind: str, nfc: float, psnr: float, **changes: Any) -> ProfileReport:
    quality = Quality(samples=3, psnr=psnr, psnr_low=psnr - 1, psnr_high=psnr + 1, ssim=0.9, latent_error=0.1)
    fields: dict[str, Any] = {
        "name": name, "nfc": nfc, "seconds": nfc / 10, "mask": MASK, "dynamic": False, "quality": quality,
        "psnr": (psnr - 5, psnr, psnr + 5), "losses": tuple(30 + i / 10 for i in range(40)), "source": "tuned weights",
        "samples": tuple(sample(kind, r, psnr + d) for r, d in (("worst", -5), ("median", 0), ("best", 5))),
    }  # fmt: skip
    return ProfileReport(**(fields | changes))


def report(kind: str = "picture", **changes: Any) -> ReportData:
    profiles = (
        profile("quality", kind, 4.0, 40.0),
        profile("fast", kind, 2.0, 30.0, losses=()),
        profile("slow", kind, 9.0, 50.0, seconds=1.5),
    )
    measurements = [Measurement(p.name, "profile", p.nfc, p.seconds, 40, 39, 41) for p in profiles]
    measurements.append(Measurement("4 steps", "fewer steps", 4.0, 0.35, 25, 24, 26))
    measurements.append(Measurement("interval 5", "TaylorSeer", 10.0, 1.1, 28, 27, 29))
    fields: dict[str, Any] = {
        "name": "demo", "policy_id": "0123456789abcdef", "steps": 10, "facts": {"model": "DiTPipeline"},
        "calibration_seconds": 7200.0, "accelerators": 1, "command": "cachesmith calibrate model --out x",
        "dashboard": "optuna-dashboard study.journal", "uncached_seconds": 1.0, "measured_on": "all 3 samples",
        "measurements": tuple(measurements), "profiles": profiles, "notes": ("DBCache was left out: no block",),
        "appendix": (Appendix("Scales", encode_media(tensor("picture", 2)), "of every lane"),),
    }  # fmt: skip
    return ReportData(**(fields | changes))
