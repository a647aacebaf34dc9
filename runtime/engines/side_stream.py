"""Work on a CUDA stream of its own, in order with the caller's."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def aside(stream: torch.cuda.Stream, tensors: Iterable[Tensor]) -> Iterator[None]:
    """Have what is enqueued on `stream` inside wait for the caller's stream, and the caller's stream wait for it.

    tensors: those of the caller that are read or written there; their memory is not reused before.
    """
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    yield
    for value in tensors:
        value.record_stream(stream)
    current.wait_stream(stream)
