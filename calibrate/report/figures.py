"""The report's figures: one function a figure, each returns the figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from cachesmith.files import replacing
from cachesmith.policies import computations

_Point = tuple[float, float]
"""Full computations, PSNR in dB."""


def nfc_front_figure(profiles: Mapping[str, _Point]) -> Figure:
    """PSNR over full computations of the policy's profiles."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.plot(
        *zip(*sorted(profiles.values()), strict=True), "k*-", markersize=11, label="profiles (held out)"
    )
    for point in set(profiles.values()):
        names = ", ".join(name for name, other in profiles.items() if other == point)
        axes.annotate(names, point, xytext=(6, -10), textcoords="offset points", fontsize=8)
    shown = [nfc for nfc, _ in profiles.values()]
    axes.set(xlabel="full computations per picture (NFC)", ylabel="PSNR to the uncached picture, dB")
    axes.set_xlim(0, 1.2 * max(shown))
    axes.margins(y=0.2)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def timeline_figure(masks: Mapping[str, str]) -> Figure:
    """Which steps every profile computes."""
    figure, axes = plt.subplots(figsize=(8, 0.5 + 0.35 * len(masks)), layout="constrained")
    shades = {"C": 1.0, "H": 0.5, "F": 0.0}
    image = np.array([[shades[letter] for letter in letters] for letters in masks.values()])
    axes.imshow(image, aspect="auto", cmap="Greys", vmin=0, vmax=1.3, interpolation="nearest")
    axes.set_yticks(
        range(len(masks)),
        [f"{name} ({computations(letters):g})" for name, letters in masks.items()],
        fontsize=8,
    )
    axes.set_xlabel("step (dark: computed; grey: one half of guidance)")
    return figure


def error_figure(errors: Mapping[str, Sequence[float]]) -> Figure:
    """Relative error of the sampler's state after every step, against the uncached run."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, values in errors.items():
        axes.plot(np.maximum(values, 1e-8), label=name)
    axes.set(xlabel="step", ylabel="relative error of the sampler's state", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all, and free it."""
    with replacing(path) as part:
        figure.savefig(part, dpi=130)
    plt.close(figure)
