"""How many samples a second the sound has that a pipeline makes."""

from typing import Any

USUAL_RATE = 44_100
"""Samples a second, where a pipeline says nothing of it."""

_NAMES = ("sampling_rate", "sample_rate")


def sampling_rate(pipe: Any) -> int:
    """Return samples a second: as the pipeline or its decoder says, in one of two spellings; else the usual."""
    vae = getattr(pipe, "vae", None)
    # not by the attribute of the module: that is its configuration's as well, with a warning
    said = [vars(pipe)] if vae is None else [vars(pipe), vars(vae), getattr(vae, "config", {})]
    return int(next((each[name] for each in said for name in _NAMES if name in each), USUAL_RATE))
