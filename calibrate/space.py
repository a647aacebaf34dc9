"""The search space: define-by-run, a pure function of a trial."""

from dataclasses import dataclass
from typing import Any, Protocol

from cachesmith.policies import (
    AdamsBashforth,
    Calibrated,
    Fixed,
    Forecaster,
    Gate,
    Hermite,
    Heun,
    Interval,
    Lagrange,
    Mixed,
    Modules,
    Observed,
    Profile,
    Relational,
    Reuse,
    Segments,
    Stack,
    Taylor,
    Units,
)
from cachesmith.policies.base import Arrays

ROWS = ("reuse", "taylor-1", "taylor-2", "lagrange-2", "hermite-2", "adams-bashforth", "heun")
MAGNITUDES = ("none", "observed", "calibrated", "mixed")
GRANULARITIES = ("stack", "segment", "module")
PHASES = 3


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
    """What recording gave: schedules by number of computed steps, scale arrays by granularity, number of blocks."""

    schedules: dict[int, str]
    arrays: Arrays
    blocks: int


def suggest(trial: Trial, recorded: Recorded) -> Profile:
    """Draw one point of the policy space."""
    granularity = trial.suggest_categorical("granularity", GRANULARITIES)
    return Profile(
        units=_units(trial, granularity, recorded.blocks),
        gate=_gate(trial, recorded),
        forecaster=_forecaster(trial, granularity),
    )


def arrays_of(profile: Profile, recorded: Recorded) -> Arrays:
    """The recorded arrays that `profile` names."""
    magnitude = profile.forecaster.magnitude
    if not isinstance(magnitude, Calibrated | Mixed):
        return {}
    return {magnitude.scales: recorded.arrays[magnitude.scales]}


def _units(trial: Trial, granularity: str, blocks: int) -> Units:
    match granularity:
        case "stack":
            return Stack()
        case "module":
            return Modules()
        case _:
            return segments(blocks, 2)


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


def _forecaster(trial: Trial, granularity: str) -> Forecaster:
    name = trial.suggest_categorical("rows", ROWS)
    if name == "reuse":
        return Forecaster(rows=Reuse())
    magnitude = trial.suggest_categorical("magnitude", MAGNITUDES)
    rows: Any = {
        "taylor-1": Taylor(order=1),
        "taylor-2": Taylor(order=2),
        "lagrange-2": Lagrange(order=2),
        "hermite-2": Hermite(order=2),
        "adams-bashforth": AdamsBashforth(),
        "heun": Heun(),
    }[name]
    scales = f"scales/{granularity}"
    return Forecaster(
        rows=rows,
        magnitude={
            "none": None,
            "observed": Observed(),
            "calibrated": Calibrated(scales=scales),
            "mixed": Mixed(scales=f"corrections/{granularity}"),
        }[magnitude],
    )


def starting_points(budgets: list[int], steps: int) -> list[dict[str, Any]]:
    """Points worth trying first: published presets, and planned schedules on the whole stack."""
    points: list[dict[str, Any]] = []
    for n in budgets:
        interval = max(2, min(10, round((steps - 1) / max(1, n - 1))))
        every = {"gate": "interval", "interval": interval}
        points += [
            {"granularity": "stack", "gate": "fixed", "computed": n, "rows": "taylor-1", "magnitude": "none"},
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
    return points
