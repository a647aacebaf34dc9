"""The front as a picture, where no report drew one over measured seconds."""

import io

from cachesmith.policies import Document


def front_picture(document: Document) -> bytes | None:
    """Return a PNG of PSNR over full computations; None without two measured profiles, or without matplotlib."""
    points = sorted(
        (p.nfc, p.quality.psnr, name)
        for name, p in document.profiles.items()
        if p.nfc is not None and p.quality is not None
    )
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return None
    if len(points) < 2:
        return None
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([nfc for nfc, *_ in points], [psnr for _, psnr, _ in points], "o-")
    for nfc, psnr, name in points:
        axes.annotate(name, (nfc, psnr), xytext=(6, -10), textcoords="offset points", fontsize=8)
    axes.set(xlabel="full computations a picture (NFC)", ylabel="PSNR to the uncached picture, dB")
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
