"""What HyCa found on a model, for the report: one figure and one paragraph."""

from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cachesmith.calibrate.fit.clusters import HycaFit
from cachesmith.calibrate.record.channels import DESCRIPTORS
from cachesmith.calibrate.report.figures import save

FIGURE = "clusters.png"


def cluster_report(folder: Path, fit: HycaFit) -> str:
    """Draw `clusters.png` into `folder` and return a Markdown section that shows and explains it."""
    folder.mkdir(parents=True, exist_ok=True)
    save(cluster_figure(fit), folder / FIGURE)
    return f"## Clusters of channels\n\n{cluster_text(fit)}\n\n![Clusters of channels]({FIGURE})\n"


def cluster_text(fit: HycaFit) -> str:
    """One paragraph: how many clusters, how stable they are, and the solver of each."""
    lanes = "1 lane" if len(fit.lanes) == 1 else f"{len(fit.lanes)} lanes"
    silhouette = fit.silhouettes.get(fit.clusters)
    said = [f"{fit.ids.shape[1]} channels of {lanes} in {fit.clusters} clusters"]
    said += [] if silhouette is None else [f"silhouette {silhouette:.2f}"]
    said += (
        [] if fit.ari_requests is None else [f"adjusted Rand index {fit.ari_requests:.2f} between requests"]
    )
    said += [] if fit.ari_steps is None else [f"{fit.ari_steps:.2f} between the two halves of the steps"]
    return "; ".join(said) + ". " + " ".join(_solver(fit, group) for group in range(fit.clusters))


def cluster_figure(fit: HycaFit) -> Figure:
    """The first lane's channels by descriptor, and every solver's error in every cluster, mean over lanes."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    _scatter(left, fit)
    _bars(right, fit)
    return figure


def _scatter(axes: Axes, fit: HycaFit) -> None:
    across, up = DESCRIPTORS.index("curvature ratio"), DESCRIPTORS.index("energy")
    for group in range(fit.clusters):
        points = fit.described[0][fit.ids[0] == group]
        axes.scatter(points[:, across], points[:, up], s=10, label=f"cluster {group} ({len(points)})")
    axes.set(xlabel="curvature ratio (standardised)", ylabel="energy (standardised)", title=fit.lanes[0])
    axes.legend(fontsize=8)


def _bars(axes: Axes, fit: HycaFit) -> None:
    width = 0.8 / fit.clusters
    for group, values in enumerate(np.sqrt(fit.errors.mean(0))):
        axes.bar(np.arange(len(values)) + group * width, values, width, label=f"cluster {group}")
    axes.set_xticks(np.arange(len(fit.solvers)) + 0.4, fit.solvers, rotation=40, ha="right", fontsize=8)
    axes.set_ylabel("relative error on recorded runs")


def _solver(fit: HycaFit, group: int) -> str:
    """Say which solvers a cluster has, most frequent first."""
    names, counts = np.unique([fit.solvers[i] for i in fit.choice[:, group]], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    listed = ", ".join(f"{names[i]} ({counts[i]})" if len(names) > 1 else str(names[i]) for i in order)
    share = float((fit.ids == group).mean())
    return f"Cluster {group} ({share:.0%} of the channels): {listed}."
