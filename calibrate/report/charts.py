"""The page's charts as SVG that takes the page's colours; one function a chart."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cachesmith.calibrate.report.data import Family, Measurement
from cachesmith.sampling.metrics import CEILING

SIZE = (4.4, 3.0)
"""Inches: small, so that the letters can be read on a telephone."""

INK = "#000000"
"""Replaced by the page's own colour of text."""

STYLES: Mapping[Family, tuple[str, str]] = {
    "profile": ("#2f7fd0", "o"),
    "fewer steps": ("#d9822b", "s"),
    "even steps": ("#8a8f98", "v"),
    "TaylorSeer": ("#4f9d69", "^"),
    "DBCache": ("#b06ab3", "D"),
}
"""Colour and marker of each family: told apart without colours, too."""

SETTINGS: Any = {
    "svg.fonttype": "none",
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.hashsalt": "cachesmith",
}


@dataclass(frozen=True)
class Chart:
    """An SVG element, and what it shows in words for those who do not see it."""

    svg: str
    words: str


def front(measurements: Sequence[Measurement], uncached_seconds: float) -> Chart:
    """Quality over measured seconds a sample."""
    figure = front_figure(measurements, uncached_seconds)
    return Chart(svg(figure), "Quality over measured seconds; the table below holds the same values.")


def front_figure(measurements: Sequence[Measurement], uncached_seconds: float) -> Figure:
    """Quality over measured seconds a sample, profiles joined by a line, the uncached run as a border.

    A baseline that computed everything would stretch the axis to the ceiling; it is in the table alone.
    """
    figure, axes = _axes("seconds a sample", "PSNR to uncached, dB")
    measurements = [m for m in measurements if m.family == "profile" or m.psnr < CEILING]
    for family, (colour, marker) in STYLES.items():
        points = sorted((m for m in measurements if m.family == family), key=lambda m: m.seconds)
        if not points:
            continue
        spans = np.array([(m.psnr - m.psnr_low, m.psnr_high - m.psnr) for m in points]).clip(min=0).T
        line = "-" if family == "profile" else ":"
        axes.errorbar(
            [m.seconds for m in points], [m.psnr for m in points], yerr=spans, label=family,
            color=colour, marker=marker, linestyle=line, markersize=5, linewidth=1, elinewidth=0.8,
        )  # fmt: skip
    for m in (m for m in measurements if m.family == "profile"):
        axes.annotate(
            m.name, (m.seconds, m.psnr), xytext=(-6, 2), textcoords="offset points", ha="right", fontsize=8
        )
    axes.axvline(uncached_seconds, color=INK, linestyle="--", linewidth=0.8, label="uncached")
    axes.set_xlim(0, 1.05 * max(uncached_seconds, *(m.seconds for m in measurements)))
    axes.margins(y=0.12)
    # above: points and the uncached line may be anywhere inside
    axes.legend(
        fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2
    )
    return figure


def histogram(psnr: Sequence[float], low: float, high: float) -> Chart:
    """PSNR of all held-out samples, with the interval of their mean."""
    figure, axes = _axes("PSNR to uncached, dB", "samples")
    axes.hist(psnr, bins=min(20, max(5, len(psnr) // 3)), color=STYLES["profile"][0])
    axes.axvspan(low, high, color=STYLES["fewer steps"][0], alpha=0.3, zorder=0, label="mean, 95 % interval")
    axes.axvline(float(np.mean(psnr)), color=INK, linestyle="--", linewidth=1)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.25)  # room for the legend
    axes.legend(fontsize=8, frameon=False)
    words = f"{len(psnr)} samples from {min(psnr):.1f} to {max(psnr):.1f} dB; mean within {low:.1f} to {high:.1f} dB."
    return Chart(svg(figure), words)


def error_chart(curves: Mapping[str, Sequence[float]], mask: str) -> Chart:
    """Relative error of the sampler's state after every step; computed steps are marked below."""
    figure, axes = _axes("step", "relative error of the state")
    colours = (STYLES["fewer steps"][0], STYLES["profile"][0], STYLES["TaylorSeer"][0])
    for (name, values), colour, dash in zip(curves.items(), colours, ("-", "--", ":"), strict=False):
        # before the first forecast the two states are equal, which no logarithm shows
        shown = [value if value > 0 else np.nan for value in values]
        axes.plot(shown, dash, label=name, linewidth=1.4, color=colour)
    if any(value > 0 for values in curves.values() for value in values):
        axes.set_yscale("log")
    axes.set_xlim(-0.5, len(mask) - 0.5)
    computed = [step for step, letter in enumerate(mask) if letter != "F"]
    axes.plot(computed, np.full(len(computed), 0.02), "|", color=INK, transform=axes.get_xaxis_transform())
    axes.legend(fontsize=8, frameon=False)
    last = ", ".join(f"{name} {values[-1]:.2g}" for name, values in curves.items())
    return Chart(svg(figure), f"Relative error after the last step: {last}.")


def losses(values: Sequence[float]) -> Chart:
    """PSNR of the fitted pictures after every iteration, and its running mean."""
    figure, axes = _axes("iteration", "PSNR on fitting samples, dB")
    axes.plot(values, color=STYLES["profile"][0], alpha=0.35, linewidth=0.8)
    width = max(1, len(values) // 12)
    mean = np.convolve(values, np.ones(width) / width, mode="valid")
    axes.plot(np.arange(len(mean)) + (width - 1) / 2, mean, color=STYLES["profile"][0], linewidth=1.6)
    return Chart(
        svg(figure), f"{len(values)} iterations, from {mean[0]:.1f} to {mean[-1]:.1f} dB (running mean)."
    )


def svg(figure: Figure) -> str:
    """Return a figure as one SVG element without what only files need; black becomes the page's ink."""
    buffer = io.StringIO()
    with mpl.rc_context(SETTINGS):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL).replace(INK, "currentColor")
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)
    # the page says how wide it is
    return re.sub(
        r'<svg ([^>]*?)\b(?:width|height)="[^"]*"([^>]*?)\b(?:width|height)="[^"]*"',
        r"<svg \1\2",
        text,
        count=1,
    )


def _axes(across: str, up: str) -> tuple[Figure, Axes]:
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel=across, ylabel=up)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
