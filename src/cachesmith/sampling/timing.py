"""Wall time of whole calls, fit for a machine that does other things too."""

import os
import platform
from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter

import torch

Timed = Callable[[], float]
"""Does the work once and returns the seconds it took."""


def elapsed(call: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Return the seconds one call takes, an accelerator's queue included."""
    synchronise(device)
    began = perf_counter()
    call()
    synchronise(device)
    return perf_counter() - began


def interleaved(
    calls: Mapping[str, Timed], repeats: int, advance: Callable[[str], None] | None = None
) -> dict[str, tuple[float, ...]]:
    """Time every call `repeats` times in turns, A B C A B C ..., so that a slow minute hits all alike.

    Warm-up is the caller's. `advance(name)` is called after each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(call())
            if advance is not None:
                advance(name)
    return {name: tuple(values) for name, values in seconds.items()}


def medians(seconds: Mapping[str, tuple[float, ...]]) -> dict[str, float]:
    """Return the median of each call's times."""
    return {name: median(values) for name, values in seconds.items()}


def synchronise(device: torch.device | str) -> None:
    """Wait for a CUDA device; nothing to wait for elsewhere."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device | str = "cpu") -> dict[str, str]:
    """Name what a time was measured on."""
    cuda = torch.device(device).type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
