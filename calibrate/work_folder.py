"""What a calibration keeps on disk, scores and tensors: an interrupted one asks again and is answered at once."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cachesmith.files import drop_torn_lines, replacing
from cachesmith.policies import PolicyError


class Memo:
    """A JSON-lines file of key -> numbers. Half a line, as a kill or a full disk leaves it, is cut off."""

    def __init__(self, path: Path):
        self._path = path
        self._known: dict[str, list[float]] = {}
        drop_torn_lines(path)
        if path.exists():
            self._known = dict(_entries(path))
        path.parent.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> list[float] | None:
        """Return what was put under `key`, or None."""
        return self._known.get(key)

    def found(self, key: str, find: Callable[[], Tensor]) -> Tensor:
        """Return what was put under `key`; the first time, numbers [N] are found and put there."""
        known = self.get(key)
        if known is None:
            self.put(key, known := find().tolist())
        return torch.tensor(known)

    def put(self, key: str, values: list[float]) -> None:
        """Remember `values`; they are on disk when this returns."""
        self._known[key] = values
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, values]) + "\n")
            file.flush()
            os.fsync(file.fileno())


def digest_of(*parts: object) -> str:
    """A short name for everything that scores depend on."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def save_tensors(path: Path, tensors: dict[str, Any]) -> None:
    """Write what `load_tensors` reads, whole or not at all, without a copy in memory; raises `OSError`."""
    with replacing(path) as part, part.open("wb") as file:
        try:
            torch.save(tensors, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # closing its archive, torch hides what the disk said
                raise error.__context__ from None
            raise


def load_tensors(path: Path) -> dict[str, Any]:
    """Read what `save_tensors` wrote; raises `PolicyError` where it is damaged."""
    try:
        tensors: dict[str, Any] = torch.load(path, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError):
        raise PolicyError(f"{path} is damaged: delete it, and its work is done again") from None
    return tensors


def _entries(path: Path) -> list[tuple[str, list[float]]]:
    entries: list[tuple[str, list[float]]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        key, values = json.loads(line)
        entries.append((key, values))
    return entries
