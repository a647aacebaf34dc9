"""What is done where the device's memory runs out: the same with half as many samples at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, Self, TypeVar

import torch

from cachesmith.policies import CachesmithError

_R = TypeVar("_R")


class Divisible(Protocol):
    """Samples that are called together."""

    def __len__(self) -> int:
        """How many they are."""

    def parts(self, size: int) -> Sequence[Self]:
        """The same in calls of at most `size` samples."""


D = TypeVar("D", bound=Divisible)


def in_memory(items: Sequence[D], work: Callable[[D], _R]) -> tuple[list[D], list[_R]]:
    """Work on each; what does not fit is halved and done again, and so is all after it. Return the parts, and results.

    `work` has to leave no trace where it fails. Raises `CachesmithError` where one sample alone does not fit.
    """
    waiting, done, results, most = [*reversed(items)], list[D](), list[_R](), 0
    while waiting:
        item = waiting.pop()
        if most and len(item) > most:
            waiting.extend(reversed(item.parts(most)))
            continue
        with out_of_memory() as failed:
            results.append(work(item))
            done.append(item)
        if failed:
            most = half(len(item), failed)
            waiting.append(item)
    return done, results


@contextmanager
def out_of_memory() -> Iterator[list[str]]:
    """Swallow an out-of-memory error; the list that is yielded holds its text, where there was one."""
    failed: list[str] = []
    try:
        yield failed
    except torch.OutOfMemoryError as error:
        failed.append((str(error).splitlines() or ["out of memory"])[0])


def half(samples: int, failed: list[str]) -> int:
    """Return how many samples to call at once after so many did not fit. Raises `CachesmithError` after one."""
    if samples > 1:
        return (samples + 1) // 2
    raise CachesmithError(
        f"one sample alone does not fit into memory ({failed[0]}); keep less on the device: --gradient-checkpointing, "
        "--offload model, or smaller sizes"
    )
