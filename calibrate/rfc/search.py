"""The Optuna study of single modules: closed-loop PSNR against full computations."""

from collections.abc import Callable

import optuna
from optuna.trial import TrialState

from cachesmith.calibrate.config import CalibrationConfig
from cachesmith.calibrate.fleet.groups import at_least
from cachesmith.calibrate.prepared import Prepared
from cachesmith.calibrate.rfc.scales import record_scales
from cachesmith.calibrate.rfc.space import arrays_of, first_points, suggest
from cachesmith.calibrate.spaces import Found
from cachesmith.calibrate.studies import open_study, run_trials
from cachesmith.policies import Policy, PolicyError, Profile, unbound
from cachesmith.policies.base import Arrays

_RECORDED = 4
"""Samples whose modules' scales are recorded."""


def search_rfc_points(
    prepared: Prepared, config: CalibrationConfig, advance: Callable[[float], None]
) -> dict[str, Found]:
    """Record scales, run the plan's trials, and return the best point within each budget."""
    if config.min_psnr is not None:
        raise PolicyError("--min-psnr is for the space `stack`; leave it out, or leave out --space rfc")
    groups = prepared.shards.groups
    some = [groups[place] for place in at_least(groups, min(_RECORDED, prepared.plan.samples))]
    with prepared.ledger.phase("recording") as phase:
        scales = record_scales(prepared.renderer, some)
        phase.forwards += sum(len(group.requests) for group in some) * config.steps
    study = open_study(config.storage, config.work, f"rfc-{prepared.key}", ["maximize", "minimize"])
    with prepared.ledger.phase("trials"):
        _run(study, prepared, scales, config, advance)
    return {name: _best(study, budget, scales, config) for name, budget in config.budgets.items()}


def _run(
    study: optuna.Study,
    prepared: Prepared,
    scales: Arrays,
    config: CalibrationConfig,
    advance: Callable[[float], None],
) -> None:
    points = first_points(sorted({int(budget) for budget in config.budgets.values()}))

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        quality, computed = score(
            prepared, _policy(suggest(trial, config.steps, config.most_computed), scales)
        )
        spent = computed * prepared.plan.samples
        prepared.ledger.phases["trials"].forwards += spent
        advance(spent / config.steps)
        return quality, computed

    run_trials(study, objective, max(prepared.plan.shapes, len(points)), config.seed, points)


def score(prepared: Prepared, policy: Policy) -> tuple[float, float]:
    """Closed-loop PSNR in dB, mean of the plan's samples, and full computations."""
    samples, nfc = prepared.shards.quality(policy)
    return float(samples.mean()), nfc


def _policy(profile: Profile, scales: Arrays) -> Policy:
    return unbound(profile, arrays_of(profile, scales))


def _best(study: optuna.Study, budget: float, scales: Arrays, config: CalibrationConfig) -> Found:
    finished = study.get_trials(states=(TrialState.COMPLETE,))
    within = [trial for trial in finished if trial.values[1] <= budget + 1e-9]
    if not within:
        raise PolicyError(f"no trial kept to {budget:g} computations; ask for more with --budget")
    trial = max(within, key=lambda each: each.values[0])
    profile = suggest(optuna.trial.FixedTrial(trial.params), config.steps, config.most_computed)
    return Found(_policy(profile, scales), f"trial {finished.index(trial)}", trial.values[1], trial.values[0])
