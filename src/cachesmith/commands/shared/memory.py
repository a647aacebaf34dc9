"""How much memory sampling took."""

import sys
from typing import Any


def reset_peak(device: Any) -> None:
    """Count a GPU's memory from here on."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: Any) -> int | None:
    """Return the most bytes that torch held on a GPU, else the process's largest resident size; None if not told."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not a POSIX system
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
