"""Lengths of a video that an autoencoder cannot draw, which pipelines round without a word or after the fact."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

FRAMES = "num_frames"
FACTORS = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")
"""What diffusers' pipelines call the frames that one latent stands for."""


def rounding(
    pipe: Any, given: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> Iterator[str]:
    """Yield a sentence where `num_frames` is not one more than a multiple of the autoencoder's factor.

    That causal autoencoders draw so many is told by the pipeline's own default; where it is of another form, or there
    is none, nothing is known.
    """
    asked, usual = (_whole(value) for value in (given.get(FRAMES), _default(parameters.get(FRAMES))))
    factor = _whole(next((getattr(pipe, name) for name in FACTORS if hasattr(pipe, name)), None))
    if not (asked and usual and factor) or (usual - 1) % factor:
        return
    if over := (asked - 1) % factor:
        yield (
            f"{type(pipe).__name__} draws one frame more than a multiple of {factor}, and is asked for {asked}; "
            f"ask for {asked - over} or {asked - over + factor}"
        )


def _default(parameter: inspect.Parameter | None) -> object:
    return None if parameter is None else parameter.default


def _whole(value: object) -> int:
    """A whole number from 1 on, else 0."""
    return value if isinstance(value, int) and value > 0 else 0
