"""The space of policies of single modules: define-by-run, a pure function of a trial."""

from typing import Any, Protocol

from cachesmith.policies import (
    Calibrated,
    ClosedRow,
    Fixed,
    Forecaster,
    Gate,
    Lagrange,
    Magnitude,
    Mixed,
    Modules,
    Observed,
    Profile,
    Relational,
    Reuse,
    Taylor,
)
from cachesmith.policies.base import Arrays
from cachesmith.policies.references import mentions
from cachesmith.policies.schedule import spaced

SOLVERS: dict[str, ClosedRow] = {
    "reuse": Reuse(), "taylor-1": Taylor(order=1), "taylor-2": Taylor(order=2), "lagrange-2": Lagrange(order=2),
}  # fmt: skip
MAGNITUDES = ("none", "observed", "calibrated", "mixed")


class Trial(Protocol):
    """What the space needs of an Optuna trial; `optuna.trial.FixedTrial` will do."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Choose one."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Choose an integer."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Choose a number."""


def suggest(trial: Trial, steps: int, most: int) -> Profile:
    """Draw one point. most: computed steps of a fixed schedule at most."""
    rows = trial.suggest_categorical("rows", tuple(SOLVERS))
    magnitude = None if rows == "reuse" else _magnitude(trial)
    return Profile(
        units=Modules(),
        gate=_gate(trial, steps, most),
        forecaster=Forecaster(rows=SOLVERS[rows], magnitude=magnitude),
    )


def arrays_of(profile: Profile, arrays: Arrays) -> Arrays:
    """Those of the recorded arrays that `profile` names."""
    return {each.name: arrays[each.name] for each in mentions("forecaster", profile.forecaster)}


def first_points(budgets: list[int]) -> list[dict[str, Any]]:
    """Points that are tried first: a fixed schedule for every budget, and two thresholds."""
    points: list[dict[str, Any]] = [
        {"rows": "taylor-1", "magnitude": "observed", "gate": "fixed", "computed": n, "power": 1.3}
        for n in budgets
    ]
    for tau in (0.05, 0.2):
        points.append(
            {
                "rows": "taylor-2",
                "magnitude": "observed",
                "gate": "relational",
                "tau": tau,
                "tau_early": 1.0,
                "tau_late": 1.0,
                "warmup": 2,
            }
        )
    return points


def _gate(trial: Trial, steps: int, most: int) -> Gate:
    if trial.suggest_categorical("gate", ("relational", "fixed")) == "fixed":
        computed = trial.suggest_int("computed", 2, most)
        return Fixed(mask=spaced(computed, steps, trial.suggest_float("power", 1.0, 1.8)))
    middle = trial.suggest_float("tau", 1e-3, 3.0, log=True)
    early = trial.suggest_float("tau_early", 0.2, 5.0, log=True)
    late = trial.suggest_float("tau_late", 0.2, 5.0, log=True)
    return Relational(
        thresholds=(middle * early, middle, middle * late), warmup=trial.suggest_int("warmup", 2, 4)
    )


def _magnitude(trial: Trial) -> Magnitude | None:
    match trial.suggest_categorical("magnitude", MAGNITUDES):
        case "observed":
            return Observed()
        case "calibrated":
            return Calibrated(scales="scales/module")
        case "mixed":
            return Mixed(scales="corrections/module")
        case _:
            return None
