"""An unfinished tuning on disk: interrupted, it goes on where it stopped and ends with the same rows."""

from collections.abc import Sequence
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cachesmith.files import write_atomically

EVERY = 10
"""Iterations between two writes."""


class Checkpoint:
    """Weights, optimizer and learning rate after the last whole iteration, and the losses so far.

    What `path` holds is restored at once. An exception that leaves the context writes what is complete.
    """

    def __init__(self, path: Path, weights: Sequence[Tensor], optimizer: Optimizer, schedule: LRScheduler):
        self._path, self._weights, self._optimizer, self._schedule = path, weights, optimizer, schedule
        self.losses: list[float] = []
        self._complete: dict[str, Any] | None = None
        if path.exists():
            self._restore(torch.load(path, map_location="cpu", weights_only=True))

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is not None:
            self._write()

    def add(self, loss: float) -> None:
        """An iteration is complete."""
        self.losses.append(loss)
        # a copy: an interrupt in the next iteration may come while the weights are half updated
        self._complete = deepcopy(self._state())
        if len(self.losses) % EVERY == 0:
            self._write()

    def _state(self) -> dict[str, Any]:
        return {
            "weights": [part.detach() for part in self._weights],
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "losses": self.losses,
        }

    @torch.no_grad()
    def _restore(self, state: dict[str, Any]) -> None:
        for part, stored in zip(self._weights, state["weights"], strict=True):
            part.copy_(stored)
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self.losses = state["losses"]

    def _write(self) -> None:
        if self._complete is not None:
            # torch reports a full disk as a stream's error that names nothing
            held = BytesIO()
            torch.save(self._complete, held)
            write_atomically(self._path, held.getbuffer())
