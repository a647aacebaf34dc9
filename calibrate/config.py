"""What a calibration is asked for, and what it returns."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cachesmith.policies import Policy, PolicyError

PROFILE_SPEEDUPS = {"quality": 3.5, "balanced": 5.0, "fast": 7.0}
"""Steps divided by full computations of the profiles a policy has unless others are asked for."""

LEAST = {"steps": 4, "budget": 10.0, "heldout": 1, "batch": 1, "trials": 1}

Space = Literal["stack", "rfc"]


@dataclass(frozen=True)
class CalibrationConfig:
    """Settings of a calibration. Raises `PolicyError` for values that make no sense.

    steps: sampler steps. budget: run equivalents (uncached runs of one sample) that may be spent before held-out ones
    are measured; seconds: a limit of time instead, from which the budget follows once a batch is timed.
    speedups: a profile each, with NFC <= steps / speed-up, in place of `PROFILE_SPEEDUPS`; min_psnr: adds the fastest
    profile that holds it out of fold. fitting: samples, by default what the budget has; heldout: samples measured last.
    space: `stack` fits weights of the whole stack, `rfc` scales and thresholds of single modules (arXiv 2602.19506) in
    at most `trials` Optuna trials; storage: an Optuna URL for its studies. gradient_checkpointing: blocks are computed
    twice for their gradients, and memory holds only their inputs. work: folder of references, studies and weights (a
    second run resumes there); out: the policy file, written before the report; report: folder for figures; baselines:
    whether it measures fewer steps, even steps, TaylorSeer and DBCache beside the profiles; earlier: a policy whose
    profiles are gone on from. lpips: weights from `benchmarks/fetch_lpips.py`, to measure held-out LPIPS
    as well.
    """

    steps: int = 50
    budget: float = 100.0
    seconds: float | None = None
    speedups: tuple[float, ...] = ()
    min_psnr: float | None = None
    fitting: int | None = None
    heldout: int = 32
    batch: int = 8
    seed: int = 0
    guidance_scale: float | None = None
    space: Space = "stack"
    trials: int = 60
    storage: str | None = None
    gradient_checkpointing: bool = False
    name: str = "policy"
    work: Path = field(default_factory=lambda: Path("cachesmith-work"))
    out: Path | None = None
    report: Path | None = None
    baselines: bool = True
    earlier: Policy | None = None
    lpips: Path | None = None

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if not getattr(self, name) >= least:
                raise PolicyError(f"{name} is {getattr(self, name)}; it must be at least {least:g}")
        for name in ("seconds", "fitting"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise PolicyError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.space not in ("stack", "rfc"):
            raise PolicyError(f"there is no space {self.space!r}; choose stack or rfc")
        for speedup in self.speedups:
            if not 2 <= speedup <= self.steps / 2:
                raise PolicyError(
                    f"speed-up {speedup:g} is out of reach; with {self.steps} steps use 2 <= S <= {self.steps / 2:g}"
                )

    @property
    def budgets(self) -> dict[str, float]:
        """Profile name -> most full computations, a multiple of a half: steps may be computed by half."""
        return self.budgets_of(self.steps)

    def budgets_of(self, steps: int) -> dict[str, float]:
        """The same for a run of so many of the sampler's steps."""
        names = {speedup: name for name, speedup in PROFILE_SPEEDUPS.items()}
        wanted = {names.get(s, f"{s:g}x"): s for s in self.speedups} or PROFILE_SPEEDUPS
        return {name: max(2, math.floor(2 * steps / speedup + 1e-9) / 2) for name, speedup in wanted.items()}


@dataclass(frozen=True)
class CalibrationResult:
    """The policy, the ledger of what it cost, and the folder of the report if one was asked for."""

    policy: Policy
    ledger: Any
    report: Path | None
