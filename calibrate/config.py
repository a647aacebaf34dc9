"""What a calibration is asked for, and what it returns."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cachesmith.policies import Fixed, Policy, PolicyError, Stack

PROFILE_SPEEDUPS = {"quality": 3.5, "balanced": 5.0, "fast": 7.0}
"""Steps divided by full computations of the profiles every policy has."""

LEAST = {
    "steps": 8, "trials": 1, "fitting": 1, "validation": 1, "heldout": 1, "batch": 1, "tune_batch": 1, "taps": 1,
    "moves": 0, "iterations": 0, "learning_rate": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class CalibrationConfig:
    """Settings of a calibration. Raises `PolicyError` for values that make no sense.

    steps: sampler steps; trials: Optuna trials; speedups: a profile each, with NFC <= steps / speed-up; min_psnr: adds
    the fastest profile that holds it on the validation samples. fitting, validation, heldout: samples in the three
    disjoint parts. moves: moves of a computed step tried on each schedule; iterations: gradient steps spent on each
    profile's weights (and about as many on the choice of its schedule), of `tune_batch` samples, whose size (along an
    axis, see `axes`) is `learning_rate` times the root mean squared error of the untuned pictures;
    gradient_checkpointing: blocks are computed twice for their gradients, and memory holds only their inputs; the
    weights are the same. work: folder for study and scores (a second run resumes there); report: folder for figures;
    earlier: a policy whose schedules and weights are tried as starting points: of a shorter calibration, or of a former
    version of the model. lpips: weights from `benchmarks/fetch_lpips.py`, to measure held-out LPIPS as well.
    """

    steps: int = 50
    trials: int = 60
    seed: int = 0
    speedups: tuple[float, ...] = ()
    min_psnr: float | None = None
    fitting: int = 64
    validation: int = 32
    heldout: int = 64
    batch: int = 32
    guidance_scale: float | None = None
    moves: int = 150
    iterations: int = 200
    tune_batch: int = 6
    learning_rate: float = 3.0
    gradient_checkpointing: bool = False
    taps: int = 3
    name: str = "policy"
    work: Path = field(default_factory=lambda: Path("cachesmith-work"))
    report: Path | None = None
    earlier: Policy | None = None
    lpips: Path | None = None

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if not getattr(self, name) >= least:
                raise PolicyError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for speedup in self.speedups:
            if not 2 <= speedup <= self.steps / 2:
                raise PolicyError(
                    f"speed-up {speedup} is out of reach; with {self.steps} steps use 2 <= S <= {self.steps / 2:g}"
                )

        if self.earlier is not None and not self.earlier_masks:
            raise PolicyError(
                f"the earlier policy has no fixed schedule of the whole stack for {self.steps} steps; leave it out"
            )

    @property
    def earlier_masks(self) -> list[str]:
        """The earlier policy's schedules of the whole stack."""
        profiles = self.earlier.document.profiles.values() if self.earlier else ()
        masks = [p.gate.mask for p in profiles if isinstance(p.units, Stack) and isinstance(p.gate, Fixed)]
        return [mask for mask in masks if len(mask) == self.steps]

    @property
    def budgets(self) -> dict[str, float]:
        """Profile name -> most full computations, a multiple of a half: steps may be computed by half."""
        wanted = PROFILE_SPEEDUPS | {f"{s:g}x": s for s in self.speedups}
        return {
            name: max(2, math.floor(2 * self.steps / speedup + 1e-9) / 2) for name, speedup in wanted.items()
        }


@dataclass(frozen=True)
class CalibrationResult:
    """The policy, the Optuna study behind it, and the folder of the report if one was asked for."""

    policy: Policy
    study: Any
    report: Path | None
