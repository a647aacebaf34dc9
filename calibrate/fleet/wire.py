"""Calls and answers as bytes: tensors go from the host's memory, whatever device they are on."""

import io
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Call(NamedTuple):
    """A method of `Shard`, and its arguments."""

    name: str
    arguments: tuple[Any, ...] = ()


class _Pickler(pickle.Pickler):
    def reducer_override(self, thing: Any) -> Any:
        if not isinstance(thing, Tensor):
            return NotImplemented
        host = thing.detach().cpu().contiguous()
        return _tensor, (host.reshape(-1).view(torch.uint8).numpy().tobytes(), host.dtype, tuple(host.shape))


def _tensor(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape) if data else torch.empty(shape)


def to_bytes(thing: Any) -> bytes:
    """As bytes; tensors come back on the host, `StackEquations` of `Halves`."""
    stream = io.BytesIO()
    _Pickler(stream, protocol=5).dump(thing)
    return stream.getvalue()


def from_bytes(data: bytes) -> Any:
    """What was packed. Only for bytes of a worker of this very calibration: they can run anything."""
    return pickle.loads(data)


def answered(do: Callable[[Call], Any], message: bytes) -> bytes:
    """Do a packed call; what it returned or raised, packed."""
    try:
        return to_bytes((do(from_bytes(message)), None))
    except Exception as error:
        return to_bytes((None, _sendable(error)))


def _sendable(error: Exception) -> Exception:
    """Errors of libraries may not be picklable, or come back as something else."""
    try:
        again = pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error if type(again) is type(error) else RuntimeError(f"{type(error).__name__}: {error}")
