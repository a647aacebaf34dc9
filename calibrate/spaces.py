"""What a calibration searches: weights of the whole stack, or scales and thresholds of single modules."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cachesmith.calibrate.closed_loop.lanes import Rows, Schedule, as_policy, in_parts, of_policy
from cachesmith.calibrate.config import CalibrationConfig
from cachesmith.calibrate.prepared import Prepared
from cachesmith.calibrate.probe import Shape
from cachesmith.calibrate.profiles import ProfileMaker, Weighted
from cachesmith.policies import Policy, PolicyError, computations
from cachesmith.progress import Advance
from cachesmith.sampling.scores import bootstrap


@dataclass(frozen=True)
class Found:
    """A profile as a policy bound to no model; nfc: its full computations; psnr: what it was chosen by, dB.

    losses: mean log squared error after every gradient iteration.
    """

    policy: Policy
    source: str
    nfc: float
    psnr: float
    losses: tuple[float, ...] = ()


def search_stack(prepared: Prepared, config: CalibrationConfig, advance: Advance) -> dict[str, Found]:
    """A profile for every budget: closed-loop least squares and gradients on the whole stack."""
    maker = ProfileMaker(prepared, config, advance)
    made: dict[float, Found] = {}
    budgets = config.budgets_of(prepared.shape.uncached)
    _check_parts(prepared.shape, budgets)
    for budget in sorted({*budgets.values()}):
        made[budget] = _found(maker(budget, _earlier(config, budget, prepared)), budget, prepared)
    found = {name: made[budget] for name, budget in budgets.items()}
    if config.min_psnr is not None:
        budget = _fastest(maker, config)
        found["min-psnr"] = _found(maker(budget), budget, prepared)
    return none_worse_than_cheaper(found)


def _check_parts(shape: Shape, budgets: Mapping[str, float]) -> None:
    """Raise `PolicyError` where a run has more parts than computations: each begins with one."""
    least = len(shape.starts)
    for name, budget in budgets.items():
        if budget < least:
            told = ", ".join(str(start + 1) for start in shape.starts)
            raise PolicyError(
                f"profile {name} computes {budget:g} steps, but steps {told} have to be computed: there a run begins, "
                "another denoiser takes over, or guidance comes on or goes off; ask for less speed, or leave guidance "
                "as it is during a run"
            )


def none_worse_than_cheaper(found: dict[str, Found]) -> dict[str, Found]:
    """A profile that is no better than a cheaper one takes the cheaper one's place."""
    kept: dict[str, Found] = {}
    best: tuple[str, Found] | None = None
    for name, each in sorted(found.items(), key=lambda item: item[1].nfc):
        if best is not None and each.psnr < best[1].psnr:
            source = f"{best[1].source}; as {best[0]}, since {each.nfc:g} computations did no better"
            kept[name] = replace(best[1], source=source)
        else:
            kept[name], best = each, (name, each)
    return kept


def _found(profile: Weighted, budget: float, prepared: Prepared) -> Found:
    policy = as_policy(
        profile.schedule, profile.rows, f"nfc-{budget:g}", prepared.shape.denoisers, prepared.shape.channels
    )
    nfc = computations(profile.schedule.mask)
    return Found(policy, profile.source, nfc, profile.psnr, profile.losses)


def _earlier(config: CalibrationConfig, budget: float, prepared: Prepared) -> tuple[Schedule, Rows] | None:
    """The earlier policy's profile of this budget; None without one."""
    if config.earlier is None:
        return None
    for name in config.earlier.document.profiles:
        known = of_policy(config.earlier, name)
        if known is None:
            continue
        schedule, rows = known
        fits = len(schedule.mask) == config.steps and schedule.follower in (None, prepared.shape.follower)
        fits = fits and {*schedule.starts} <= {*prepared.shape.starts}
        wide = next(iter(rows.values())).shape[-1] == sum(prepared.shape.channels)
        parts = in_parts(schedule, rows, prepared.shape.starts) if fits and wide else None
        if parts is not None and computations(schedule.mask) == budget:
            return parts, {step: row.to(prepared.shards.device) for step, row in rows.items()}
    warnings.warn(
        f"the earlier policy has no weights of the whole stack for {budget:g} of {config.steps} steps; "
        "this profile starts anew",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def _fastest(maker: ProfileMaker, config: CalibrationConfig) -> int:
    """Bisect for the fewest computations that hold `min_psnr` at the lower end of 95 %, out of fold.

    Raises `PolicyError` when even `most_computed` do not hold it.
    """
    # every part begins with a computed step
    low = max(1, len(maker.shape.starts) - 1)
    wanted, high = config.min_psnr or 0.0, max(config.most_computed, low + 1)

    def holds(budget: int) -> bool:
        return bootstrap(maker.unsearched(budget), config.seed)[0] >= wanted

    if not holds(high):
        raise PolicyError(
            f"no policy that computes {high} of {config.steps} steps or fewer holds {config.min_psnr:g} dB; "
            "ask for less with --min-psnr"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def search_rfc(prepared: Prepared, config: CalibrationConfig, advance: Advance) -> dict[str, Found]:
    """A profile for every budget: RFE's scales from recorded runs, RCS's thresholds by Optuna (arXiv 2602.19506)."""
    from cachesmith.calibrate.rfc.search import search_rfc_points

    names = list(dict.fromkeys(name for called in prepared.shape.denoisers for name in called))
    if len(names) > 1:
        raise PolicyError(
            f"the space `rfc` is for one denoiser, and this pipeline calls {', '.join(names)}; "
            "leave --space rfc out"
        )
    return none_worse_than_cheaper(search_rfc_points(prepared, config, advance))
