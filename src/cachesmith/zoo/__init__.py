"""A tiny random transformer of every class that diffusers has, and how its pipeline calls it. No tests."""

import diffusers

from cachesmith.zoo.audio import AUDIO
from cachesmith.zoo.edits import EDITS
from cachesmith.zoo.image import FLUX3_EDIT, IMAGE
from cachesmith.zoo.known import KNOWN
from cachesmith.zoo.other import OTHER
from cachesmith.zoo.tiny import Tiny
from cachesmith.zoo.video import KANDINSKY6_SILENT, VIDEO
from cachesmith.zoo.wan import WAN

__all__ = ["KNOWN", "NO_ROW", "VARIANTS", "ZOO", "Tiny", "transformer_classes"]

ZOO: dict[str, Tiny] = dict(sorted((KNOWN | IMAGE | EDITS | VIDEO | WAN | AUDIO | OTHER).items()))


VARIANTS: dict[str, tuple[str, Tiny]] = {
    "Flux3Transformer2DModel (edit)": ("Flux3Transformer2DModel", FLUX3_EDIT),
    "Kandinsky6Transformer3DModel (no audio)": ("Kandinsky6Transformer3DModel", KANDINSKY6_SILENT),
}
"""Other ways to call a class, by a name of their own."""

NO_ROW = {
    "MiniMaxMusic3RVQDepthDecoder": "it writes codes one by one, and is given no timestep",
    "T5FilmDecoder": "the blocks of decoders return a tuple of one",
}
"""Classes of that folder that cannot be cached, and why."""


def transformer_classes() -> set[str]:
    """Names of all classes in diffusers' folder of transformers that diffusers itself exports."""
    public = vars(diffusers.models.transformers)
    return {
        n
        for n in dir(diffusers.models.transformers)
        if n in public and n[0].isupper() and hasattr(diffusers, n)
    }
