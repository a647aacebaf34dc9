"""Samples at once, and what rests where."""

from dataclasses import dataclass

USUAL_BATCH = 8
"""Samples at once, where memory and the user leave it open."""


@dataclass(frozen=True)
class Placement:
    """What is on the device: batch, gradient_batch: samples at once; history: what is remembered of all samples rests
    there; recomputed: blocks are computed twice for their gradients; graph_on_host: what a backward pass needs of
    them waits on the host; offload: a component rests on the host while another computes.
    """

    batch: int = USUAL_BATCH
    gradient_batch: int = USUAL_BATCH
    history: bool = True
    recomputed: bool = False
    graph_on_host: bool = False
    offload: bool = False

    def __str__(self) -> str:
        """As options of `cachesmith calibrate`."""
        options = f"--batch {self.batch}" + " --gradient-checkpointing" * self.recomputed
        return options + " --offload model" * self.offload

    @property
    def resting(self) -> str:
        """In words, what no option says."""
        host = [
            *([] if self.history else ["what is remembered of samples"]),
            *(["what gradients need"] if self.graph_on_host else []),
        ]
        rest = f"; on the host: {', '.join(host)}" if host else ""
        return f"{self.gradient_batch} at once for gradients{rest}"
