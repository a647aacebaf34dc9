"""The figure of a race: quality over computations, and over measured time."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from contest.ours import CALIBRATED
from contest.race import Result

SPAN = 2.0
"""How far beyond the largest budget the figure reaches, as a factor."""


def draw(results: Sequence[Result], budgets: Sequence[int], path: Path) -> None:
    """Draw PSNR over NFC, and over seconds where they were measured, one colour a family."""
    shown = [
        r for r in results if r.error is None and r.family != "uncached" and r.nfc <= SPAN * max(budgets)
    ]
    timed = [r for r in shown if r.seconds is not None]
    size = (7 + 6 * bool(timed), 5)
    figure, axes = plt.subplots(1, 1 + bool(timed), figsize=size, layout="constrained", squeeze=False)
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(r.family for r in shown))}
    _panel(axes[0][0], [(r, r.nfc) for r in shown], colours, "full computations per picture (NFC)")
    if timed:
        _panel(
            axes[0][1], [(r, r.seconds or 0.0) for r in timed], colours, "seconds for all pictures (median)"
        )
    axes[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(axes: Axes, points: Iterable[tuple[Result, float]], colours: dict[str, str], label: str) -> None:
    groups: dict[str, list[tuple[float, float]]] = {}
    for result, x in points:
        groups.setdefault(result.family, []).append((x, result.psnr))
    for family, found in groups.items():
        axes.scatter(*zip(*found, strict=True), s=14, alpha=0.4, color=colours[family])
        style = "*-" if family == CALIBRATED else "-"
        axes.plot(*zip(*front(found), strict=True), style, color=colours[family], label=family, markersize=10)
    axes.set(xlabel=label, ylabel="PSNR to the uncached picture, dB")
    axes.grid(alpha=0.3)


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats with a smaller x, by x."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept
