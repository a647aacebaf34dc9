"""HyCa (arXiv 2510.04188) on a model: channels are clustered, and every cluster gets the solver that suits it.

Beyond the paper: rows fitted by ridge regression as one more solver (`ridge`), and solvers chosen by real sampling runs
(`select="closed-loop"`), since errors on recorded runs do not see how forecast errors add up.

Heun's rule on cached values is Taylor of order 2, so the published pool is smaller than it looks.
"""

from collections.abc import Sequence
from typing import Literal

from cachesmith.calibrate.fit.clusters import HycaFit, analyse, closed_loop
from cachesmith.calibrate.methods.granularity import granularity
from cachesmith.calibrate.record.channels import record_grams
from cachesmith.policies import Fixed, Forecaster, Policy, PolicyError, Profile, mask, unbound
from cachesmith.policies.errors import refusing
from cachesmith.policies.schedule import interval_gate
from cachesmith.progress import stage
from cachesmith.runtime.models.units import block_lists
from cachesmith.sampling.evaluate import Evaluator
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request

_PREFIX = "hyca"


@refusing("method hyca")
def fit_hyca(
    renderer: Renderer,
    requests: Sequence[Request],
    *,
    interval: int = 5,
    warmup: int = 2,
    budget: int | None = None,
    schedule: str | None = None,
    units: str = "stack",
    clusters: int | None = None,
    ridge: float | None = None,
    taps: int = 2,
    probe_steps: int | None = None,
    shared: bool = False,
    select: Literal["probe", "closed-loop"] = "probe",
    seed: int = 0,
) -> Policy:
    """Sample `requests` uncached and return a policy with a solver for every cluster of channels.

    interval and warmup, or budget (steps spread evenly), or schedule (letters C and F): which steps are computed.
    units: `stack`, `segment` or `module`. clusters: how many; by default, as many as the silhouette asks for, 2 to 6.
    ridge: also offer rows of `taps` weights, fitted with this much pull towards a line. probe_steps: describe channels
    by the first few steps only. shared: one clustering for all units.

    Raises `PolicyError` where the schedule does not fit the number of steps.
    """
    if (clusters is not None and clusters < 1) or taps < 1:
        raise PolicyError(f"got {clusters} clusters and {taps} taps; give at least 1 of each")
    if select not in ("probe", "closed-loop"):
        raise PolicyError(f"there is no selection {select!r}; choose `probe` or `closed-loop`")
    transformer = renderer.pipe.transformer
    chosen = granularity(units, len(block_lists(transformer)))
    gate = Fixed(mask=schedule) if schedule else interval_gate(renderer.steps, interval, budget, warmup)
    found = analyse(
        record_grams(renderer, requests, chosen), mask(gate, renderer.steps),
        clusters=clusters, ridge=ridge, taps=taps, probe_steps=probe_steps, shared=shared, seed=seed,
    )  # fmt: skip

    def policy(candidate: HycaFit) -> Policy:
        row, arrays = candidate.rows(_PREFIX)
        return unbound(Profile(units=chosen, gate=gate, forecaster=Forecaster(rows=row)), arrays)

    if select == "probe":
        return policy(found)
    evaluator = Evaluator(renderer, requests)
    with stage("solvers", found.clusters * len(found.solvers)) as advance:
        return policy(closed_loop(found, lambda candidate: evaluator(policy(candidate)).psnr, advance))
