"""What a calibration is asked for, and what it returns."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cachesmith.calibrate.objective import check_objective
from cachesmith.policies import Policy, PolicyError
from cachesmith.runtime.match import FEW_STEPS

PROFILE_SPEEDUPS = {"quality": 3.5, "balanced": 5.0, "fast": 7.0}
"""Steps divided by full computations of the profiles a policy has unless others are asked for."""

SHORT_RUN = 8
"""Up to so many steps a policy has the profiles of `FEW_STEPS_SPEEDUPS`, since others would leave two computations."""

FEW_STEPS_SPEEDUPS = {"quality": 1.6, "balanced": 2.0, "fast": 2.6}
"""Of 8 steps 5, 4 and 3 are computed."""

LEAST = {"steps": 4, "budget": 10.0, "heldout": 1, "batch": 1, "trials": 1}

Space = Literal["stack", "rfc"]


@dataclass(frozen=True)
class CalibrationConfig:
    """Settings of a calibration. Raises `PolicyError` for values that make no sense.

    steps: sampler steps. budget: run equivalents (uncached runs of one sample) that may be spent before held-out ones
    are measured; seconds: a limit of time instead, from which the budget follows once a batch is timed.
    speedups: a profile each, with NFC <= steps / speed-up, above 1, in place of `PROFILE_SPEEDUPS` (up to `SHORT_RUN`
    steps `FEW_STEPS_SPEEDUPS`); min_psnr: adds the fastest profile that holds it out of fold. fitting: samples, by
    default what the budget has; heldout: samples measured last. space: `stack` fits weights of the whole stack, `rfc`
    scales and thresholds of single modules (arXiv 2602.19506) in at most `trials` Optuna trials; storage: an Optuna URL
    for its studies. batch: samples at once; gradient_checkpointing: blocks are computed twice for their gradients, and
    memory holds only their inputs; both by default as the device's free memory has it. work: folder of references,
    studies and weights (a second run resumes there); out: the policy file, written before the report; report: folder
    for figures; baselines: whether it measures fewer steps, even steps, TaylorSeer and DBCache beside the profiles;
    earlier: a policy whose profiles are gone on from. objective: the metric, one of `METRICS`, by which schedules of
    the stack are compared; weights are fitted to the latents, and `min_psnr` and a cheaper profile are held against
    PSNR, all the same. workers: processes that share the samples, this one among them, one a GPU; ray: the
    address of the Ray cluster that has the others, in place of this machine. lpips: weights from
    `benchmarks/fetch_lpips.py`, to measure held-out LPIPS as well.
    """

    steps: int = 50
    budget: float = 100.0
    seconds: float | None = None
    speedups: tuple[float, ...] = ()
    min_psnr: float | None = None
    fitting: int | None = None
    heldout: int = 32
    batch: int | None = None
    seed: int = 0
    guidance_scale: float | None = None
    space: Space = "stack"
    trials: int = 60
    storage: str | None = None
    gradient_checkpointing: bool | None = None
    name: str = "policy"
    work: Path = field(default_factory=lambda: Path("cachesmith-work"))
    out: Path | None = None
    report: Path | None = None
    baselines: bool = True
    earlier: Policy | None = None
    lpips: Path | None = None
    objective: str = "psnr"
    workers: int = 1
    ray: str | None = None

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if getattr(self, name) is not None and not getattr(self, name) >= least:
                raise PolicyError(f"{name} is {getattr(self, name)}; it must be at least {least:g}")
        for name in ("seconds", "fitting", "workers"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise PolicyError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.ray is not None and self.workers == 1:
            raise PolicyError(
                "a Ray cluster is for several workers; say how many, this process among them: --workers N"
            )
        self._check_space()
        for speedup in self.speedups:
            self._check_speedup(speedup)

    def _check_space(self) -> None:
        if self.space not in ("stack", "rfc"):
            raise PolicyError(f"there is no space {self.space!r}; choose stack or rfc")
        check_objective(self.objective, self.lpips)
        if self.space == "rfc" and self.objective != "psnr":
            raise PolicyError("--objective is for the space `stack`; leave it out, or leave out --space rfc")
        if self.space == "rfc" and self.steps < FEW_STEPS:
            raise PolicyError(f"--space rfc needs {FEW_STEPS} steps or more; leave it out for {self.steps}")

    def _check_speedup(self, speedup: float) -> None:
        if not 1 < speedup <= self.steps / 2:
            raise PolicyError(
                f"speed-up {speedup:g} is out of reach; with {self.steps} steps use 1 < S <= {self.steps / 2:g}"
            )

    @property
    def common(self) -> dict[str, Any]:
        """Arguments that every call of the pipeline gets."""
        return {} if self.guidance_scale is None else {"guidance_scale": self.guidance_scale}

    @property
    def budgets(self) -> dict[str, float]:
        """Profile name -> most full computations, a multiple of a half: steps may be computed by half."""
        return self.budgets_of(self.steps)

    def budgets_of(self, uncached: float) -> dict[str, float]:
        """The same for a run that has so many full computations uncached."""
        usual = FEW_STEPS_SPEEDUPS if self.steps <= SHORT_RUN else PROFILE_SPEEDUPS
        names = {speedup: name for name, speedup in usual.items()}
        wanted = {names.get(s, f"{s:g}x"): s for s in self.speedups} or usual
        most = math.floor(2 * uncached) - 1
        return {
            name: max(2, min(math.floor(2 * uncached / speedup + 1e-9), most) / 2)
            for name, speedup in wanted.items()
        }

    @property
    def most_computed(self) -> int:
        """Full computations up to which is searched: half of all steps, or what a profile asks for.

        Of up to `SHORT_RUN` steps all but one, since half of them say little there.
        """
        usual = self.steps - 1 if self.steps <= SHORT_RUN else self.steps // 2
        return max(usual, int(max(self.budgets.values())))


@dataclass(frozen=True)
class CalibrationResult:
    """The policy, the ledger of what it cost, and the folder of the report if one was asked for."""

    policy: Policy
    ledger: Any
    report: Path | None
