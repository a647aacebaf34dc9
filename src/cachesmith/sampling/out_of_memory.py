"""What is done where the device's memory runs out: the same with fewer samples at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cachesmith.policies import CachesmithError


@contextmanager
def out_of_memory() -> Iterator[list[str]]:
    """Swallow an out-of-memory error; the list that is yielded holds its text, where there was one."""
    failed: list[str] = []
    try:
        yield failed
    except torch.OutOfMemoryError as error:
        failed.append(str(error).splitlines()[0])


def half(samples: int, failed: list[str]) -> int:
    """Return how many samples to call at once after so many did not fit. Raises `CachesmithError` after one."""
    if samples > 1:
        return (samples + 1) // 2
    raise CachesmithError(
        f"one sample alone does not fit into memory ({failed[0]}); keep less on the device: --offload model or "
        "sequential, --vae-tiling, smaller sizes"
    )
