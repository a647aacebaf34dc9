"""Calibrations of a tiny random DiT that take seconds."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from tests.tiny import tiny_dit

from cachesmith.calibrate import CalibrationConfig, calibrate
from cachesmith.policies import Calibration, Document, Fixed, Policy, Profile
from cachesmith.sampling.requests import Split, requests_digest

LABELS: list[Any] = [{"class_labels": i} for i in range(10)]


def settings(work: Path, **changes: Any) -> CalibrationConfig:
    quick: dict[str, Any] = {
        "steps": 12,
        "budget": 16.0,
        "speedups": (4.0,),
        "fitting": 4,
        "heldout": 2,
        "batch": 4,
        "guidance_scale": 1.5,
    }
    return CalibrationConfig(work=work, **(quick | changes))


def pipeline() -> Any:
    """SSIM needs pictures of 11 pixels or more: the decoder doubles the size."""
    pipe = tiny_dit()
    torch.manual_seed(1)
    pipe.vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4), norm_num_groups=2, latent_channels=4, layers_per_block=1, sample_size=16,
    ).eval()  # fmt: skip
    return pipe


def run(work: Path, **changes: Any) -> Policy:
    return calibrate(pipeline(), LABELS, settings(work, **changes)).policy


def recorded(parts: Split) -> Policy:
    """An earlier policy that was calibrated with this split."""
    fitting = tuple(r.seed for r in (*parts.fitting, *parts.validation))
    heldout = tuple(r.seed for r in parts.heldout)
    record = Calibration(
        fitting_prompts=requests_digest([*parts.fitting, *parts.validation]),
        heldout_prompts=requests_digest(parts.heldout),
        fitting_size=len(fitting), heldout_size=len(heldout), fitting_seeds=fitting, heldout_seeds=heldout,
        dtype="float32", versions={}, study="study",
    )  # fmt: skip
    profiles = {"fast": Profile(gate=Fixed(mask="CCFF" * 4))}
    return Policy(Document(name="earlier", profiles=profiles, calibration=record))
