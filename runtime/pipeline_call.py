"""What a pipeline was asked for in one sampling run."""

from collections.abc import Mapping
from dataclasses import dataclass

SIZES = ("height", "width", "num_frames")
"""Arguments that say how large a sample is."""
SCALES = ("scale", "guidance", "cfg")
"""What the name of an argument that sets the strength of guidance has in it."""


@dataclass(frozen=True)
class PipelineCall:
    """A sampling run as it was asked for: the numbers among the pipeline's arguments, and one sample's shape as the
    transformer is given it (without the batch)."""

    arguments: Mapping[str, float]
    latents: tuple[int, ...] = ()

    @property
    def scales(self) -> dict[str, float]:
        """Every argument that is a scale of guidance."""
        return {n: v for n, v in self.arguments.items() if any(part in n for part in SCALES)}

    @property
    def size(self) -> dict[str, int]:
        """Height and width in pixels, and frames, where the pipeline has them."""
        return {name: int(self.arguments[name]) for name in SIZES if name in self.arguments}
