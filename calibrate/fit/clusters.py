"""What HyCa (arXiv 2510.04188) settles offline: clusters of channels, how stable they are, a solver for each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachesmith.calibrate.fit.solvers import POOL, forecast_errors, grouped_gram, ridge_table, row_table
from cachesmith.calibrate.record.channels import (
    FEWEST,
    Labels,
    agreement,
    cluster,
    cluster_all,
    descriptors,
    joined_grams,
)
from cachesmith.policies import Clusters, Fitted, PolicyError
from cachesmith.policies.base import Arrays

RIDGE = "ridge"
"""The solver whose weights are fitted to the recorded runs."""

Choice = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class HycaFit:
    """Clusters and solvers of every lane of one granularity on one schedule.

    ids: the cluster of every channel, [lanes, C], 0 the smoothest; silhouettes: by number of clusters; errors: relative
    squared forecast error on the recorded runs, [lanes, clusters, solvers]; choice: the solver of every cluster,
    [lanes, clusters]; tables: weights of every solver, [lanes, steps, taps, clusters]; described: standardised
    descriptors, [lanes, C, 6]. ari_requests and ari_steps are mean adjusted Rand indices between clusterings made on
    single requests, and on the first and the second half of the steps; None with one request, or below 10 steps.
    """

    lanes: tuple[str, ...]
    ids: Labels
    silhouettes: Mapping[int, float]
    solvers: tuple[str, ...]
    errors: NDArray[np.float64]
    choice: Choice
    tables: Mapping[str, Tensor]
    described: NDArray[np.float64]
    ari_requests: float | None
    ari_steps: float | None

    @property
    def clusters(self) -> int:
        """Number of clusters of every lane."""
        return int(self.errors.shape[1])

    def rows(self, prefix: str) -> tuple[Clusters | Fitted, Arrays]:
        """The forecaster's rows, and the arrays they name: closed rows by cluster, or weights where one is fitted."""
        return _closed(self, prefix) if RIDGE not in self.solvers else _fitted(self, prefix)


def analyse(
    grams: Mapping[str, Tensor],
    mask: str,
    *,
    clusters: int | None = None,
    ridge: float | None = None,
    taps: int = 2,
    probe_steps: int | None = None,
    shared: bool = False,
    seed: int = 0,
) -> HycaFit:
    """Cluster the channels of every lane and choose each cluster's solver by its error on the recorded runs.

    grams: lane -> [requests, channels, steps, steps], see `record_grams`. The published pool is tried, and rows of
    `taps` weights fitted by ridge regression if `ridge` is given. `probe_steps`: describe channels by the first few
    steps only, as the paper does. `shared`: one clustering for all lanes; their solvers still differ.

    Raises `PolicyError` where the schedule is for another number of steps or forecasts nothing.
    """
    mean = joined_grams(grams)
    _check(mask, mean.shape[-1])
    seen = mean[..., :probe_steps, :probe_steps]
    ids, scores = cluster_all(seen, clusters, seed, shared=shared)
    count = int(ids.max()) + 1
    reduced = torch.stack(
        [grouped_gram(g, torch.from_numpy(i), count) for g, i in zip(mean, ids, strict=True)]
    )
    tables = _tables(reduced, mask, ridge, taps)
    wrong = np.stack([_errors(gram, lane, tables, mask) for lane, gram in enumerate(reduced)])
    return HycaFit(
        lanes=tuple(grams),
        ids=ids,
        silhouettes=scores,
        solvers=tuple(tables),
        errors=wrong,
        choice=wrong.argmin(2).astype(np.int32),
        tables=tables,
        described=np.stack([descriptors(gram) for gram in seen]),
        ari_requests=_ari_requests(grams, count, seed),
        ari_steps=_ari_steps(mean, count, seed),
    )


def closed_loop(fit: HycaFit, score: Callable[[HycaFit], float], advance: Callable[[int], None]) -> HycaFit:
    """Choose solvers by real sampling runs: one cluster after the other, the worst on record first.

    A cluster gets the same solver in every lane. `score` is larger for better fits; `advance(n)` is called after n
    runs.
    """
    best, highest = fit, score(fit)
    for group in np.argsort(-fit.errors.min(2).mean(0)):
        for solver in range(len(fit.solvers)):
            choice = best.choice.copy()
            choice[:, group] = solver
            candidate = replace(best, choice=choice)
            value = highest if np.array_equal(choice, best.choice) else score(candidate)
            best, highest = (candidate, value) if value > highest else (best, highest)
            advance(1)
    return best


def _check(mask: str, steps: int) -> None:
    if len(mask) != steps or "F" not in mask:
        raise PolicyError(
            f"the schedule {mask!r} is for {len(mask)} steps and the runs have {steps}; "
            "give a schedule of that length that forecasts at least one step"
        )


def _tables(reduced: Tensor, mask: str, ridge: float | None, taps: int) -> dict[str, Tensor]:
    lanes, count = reduced.shape[:2]
    tables = {
        name: row_table(row, mask, row.taps)[None, ..., None].expand(lanes, -1, -1, count)
        for name, row in POOL.items()
    }
    if ridge is not None:
        tables[RIDGE] = torch.stack([ridge_table(gram, mask, taps, ridge) for gram in reduced])
    return tables


def _errors(gram: Tensor, lane: int, tables: Mapping[str, Tensor], mask: str) -> NDArray[np.float64]:
    each: NDArray[np.float64] = torch.stack(
        [forecast_errors(gram, table[lane], mask) for table in tables.values()], dim=1
    ).numpy()
    return each


def _closed(fit: HycaFit, prefix: str) -> tuple[Clusters, Arrays]:
    used, chosen = np.unique(fit.choice, return_inverse=True)
    solver = chosen.reshape(fit.choice.shape).astype(np.int32)
    ids = np.take_along_axis(solver, fit.ids, axis=1)
    solvers = tuple(POOL[fit.solvers[index]] for index in used)
    return Clusters(ids=f"{prefix}/ids", rows=solvers), {f"{prefix}/ids": ids}


def _fitted(fit: HycaFit, prefix: str) -> tuple[Fitted, Arrays]:
    taps = max(table.shape[2] for table in fit.tables.values())
    weights = np.zeros((*fit.tables[RIDGE].shape[:2], taps, fit.clusters), np.float32)
    for (lane, group), solver in np.ndenumerate(fit.choice):
        table = fit.tables[fit.solvers[solver]]
        weights[lane, :, : table.shape[2], group] = table[lane, ..., group].numpy()
    row = Fitted(weights=f"{prefix}/weights", ids=f"{prefix}/ids")
    return row, {f"{prefix}/weights": weights, f"{prefix}/ids": fit.ids}


def _ari_requests(grams: Mapping[str, Tensor], count: int, seed: int) -> float | None:
    if min(len(requests) for requests in grams.values()) < 2:
        return None
    each = [agreement([cluster(gram, count, seed) for gram in requests]) for requests in grams.values()]
    return float(np.mean(each))


def _ari_steps(mean: Tensor, count: int, seed: int) -> float | None:
    half = mean.shape[-1] // 2
    if half < FEWEST:
        return None
    parts = (slice(None, half), slice(half, None))
    return float(np.mean([agreement([cluster(gram[:, p, p], count, seed) for p in parts]) for gram in mean]))
