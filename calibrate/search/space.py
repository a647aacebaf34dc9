"""The search space: define-by-run, a pure function of a trial."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cachesmith.calibrate.record.channels import CLUSTERS
from cachesmith.policies import (
    AdamsBashforth,
    Calibrated,
    ClosedRow,
    Clusters,
    Fixed,
    Forecaster,
    Gate,
    Hermite,
    Heun,
    Interval,
    Lagrange,
    Magnitude,
    Mixed,
    Modules,
    Observed,
    PolicyError,
    Profile,
    Relational,
    Reuse,
    Segments,
    Stack,
    Subspace,
    Taylor,
    Units,
)
from cachesmith.policies.base import Arrays
from cachesmith.policies.references import mentions

SOLVERS: dict[str, ClosedRow] = {
    "reuse": Reuse(),
    "taylor-1": Taylor(order=1),
    "taylor-2": Taylor(order=2),
    "lagrange-2": Lagrange(order=2),
    "hermite-2": Hermite(order=2),
    "adams-bashforth": AdamsBashforth(),
    "heun": Heun(),
}
ROWS = tuple(SOLVERS)
MAGNITUDES = ("none", "observed", "calibrated", "mixed")
GRANULARITIES = ("stack", "segment", "module")


class Trial(Protocol):
    """What the space needs of an Optuna trial; `optuna.trial.FixedTrial` will do."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Choose one."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Choose an integer."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Choose a number."""


@dataclass(frozen=True)
class Recorded:
    """What recording gave: schedules by number of computed steps, arrays such as `scales/stack`, number of blocks.

    `clusters/...` and `basis/...` are there for the granularities they were recorded at.
    """

    schedules: dict[int, str]
    arrays: Arrays
    blocks: int


def suggest(trial: Trial, recorded: Recorded) -> Profile:
    """Draw one point of the policy space."""
    units = granularity(trial.suggest_categorical("granularity", GRANULARITIES), recorded.blocks)
    return Profile(
        units=units,
        gate=_gate(trial, recorded),
        forecaster=_forecaster(trial, units.kind, recorded.arrays),
    )


def arrays_of(profile: Profile, recorded: Recorded) -> Arrays:
    """The recorded arrays that `profile` names."""
    named = (reference.name for reference in mentions("forecaster", profile.forecaster))
    return {name: recorded.arrays[name] for name in named}


def granularity(name: str, blocks: int) -> Units:
    """Return the units that an option names: `stack`, two segments of nearly equal length, or `module`."""
    match name:
        case "stack":
            return Stack()
        case "segment":
            return segments(blocks, 2)
        case "module":
            return Modules()
        case _:
            raise PolicyError(f"there are no units {name!r}; choose from {', '.join(GRANULARITIES)}")


def segments(blocks: int, count: int) -> Segments:
    """`count` segments of nearly equal length."""
    return Segments(starts=tuple(sorted({round(i * blocks / count) for i in range(count)})))


def _gate(trial: Trial, recorded: Recorded) -> Gate:
    match trial.suggest_categorical("gate", ("fixed", "interval", "relational")):
        case "fixed":
            budgets = sorted(recorded.schedules)
            return Fixed(mask=recorded.schedules[trial.suggest_int("computed", budgets[0], budgets[-1])])
        case "interval":
            return Interval(
                interval=trial.suggest_int("interval", 2, 10), warmup=trial.suggest_int("warmup", 1, 4)
            )
        case _:
            middle = trial.suggest_float("tau", 1e-3, 3.0, log=True)
            early = trial.suggest_float("tau_early", 0.2, 5.0, log=True)
            late = trial.suggest_float("tau_late", 0.2, 5.0, log=True)
            return Relational(
                thresholds=(middle * early, middle, middle * late),
                warmup=trial.suggest_int("warmup_relational", 2, 4),
            )


def _forecaster(trial: Trial, units: str, arrays: Arrays) -> Forecaster:
    name = trial.suggest_categorical("rows", ROWS)
    if name == "reuse":
        return Forecaster(rows=Reuse())
    return Forecaster(
        rows=_rows(trial, name, f"clusters/{units}", arrays),
        subspace=_subspace(trial, f"basis/{units}", arrays),
        magnitude=_magnitude(trial, units),
    )


def _rows(trial: Trial, first: str, ids: str, arrays: Arrays) -> Any:
    """One solver for all channels, or, where clusters were recorded, one for each; `first` is the smoothest one's."""
    if ids not in arrays or not trial.suggest_categorical("clustered", (False, True)):
        return SOLVERS[first]
    count = int(np.max(arrays[ids])) + 1
    others = (trial.suggest_categorical(f"rows_{cluster}", ROWS) for cluster in range(1, count))
    return Clusters(ids=ids, rows=(SOLVERS[first], *(SOLVERS[name] for name in others)))


def _subspace(trial: Trial, basis: str, arrays: Arrays) -> Subspace | None:
    if basis not in arrays or not trial.suggest_categorical("subspace", (False, True)):
        return None
    return Subspace(basis=basis)


def _magnitude(trial: Trial, units: str) -> Magnitude | None:
    match trial.suggest_categorical("magnitude", MAGNITUDES):
        case "observed":
            return Observed()
        case "calibrated":
            return Calibrated(scales=f"scales/{units}")
        case "mixed":
            return Mixed(scales=f"corrections/{units}")
        case _:
            return None


OTHERS = {f"rows_{cluster}": "taylor-1" for cluster in range(1, max(CLUSTERS))}
"""Solvers of all clusters but the smoothest."""


def starting_points(budgets: list[int], steps: int) -> list[dict[str, Any]]:
    """Points worth trying first: published presets, and planned schedules on the whole stack."""
    points: list[dict[str, Any]] = []
    for n in budgets:
        interval = max(2, min(10, round((steps - 1) / max(1, n - 1))))
        every = {"gate": "interval", "interval": interval}
        planned = {"gate": "fixed", "computed": n, "rows": "taylor-1", "magnitude": "none"}
        on_stack = {"granularity": "stack", **planned}
        points += [
            on_stack,
            {**on_stack, "clustered": True, "subspace": True, **OTHERS},
            {"granularity": "module", **every, "warmup": 1, "rows": "reuse"},
            {"granularity": "module", **every, "warmup": 2, "rows": "taylor-2", "magnitude": "none"},
            {
                "granularity": "module",
                "gate": "fixed",
                "computed": n,
                "rows": "taylor-1",
                "magnitude": "observed",
            },
        ]
    for tau in (0.05, 0.2):
        relational = {
            "gate": "relational",
            "tau": tau,
            "tau_early": 1.0,
            "tau_late": 1.0,
            "warmup_relational": 2,
        }
        points.append({"granularity": "module", **relational, "rows": "taylor-2", "magnitude": "observed"})
    return [{"clustered": False, "subspace": False} | point for point in points]
