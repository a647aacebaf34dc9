"""What a value is, by its contents: the same in every process, never an address or an abbreviated print."""

import hashlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from cachesmith.policies import CachesmithError
from cachesmith.sampling.requests.files import File

PLAIN = (str, int, float, bool, type(None))


def plain(value: Any) -> Any:
    """Return `value` as JSON has it; of tensors, arrays, pictures and files, type, shape and sha256 of the contents.

    Raises `CachesmithError` for anything else: its contents cannot be told from those of another.
    """
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, File):
        return value.contents
    kind, data = _bytes_of(value)
    return {"contents": f"{kind} {hashlib.sha256(data).hexdigest()}"}


def _bytes_of(value: Any) -> tuple[str, bytes]:
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biufc":
        return f"array {value.dtype.str} {list(value.shape)}", np.ascontiguousarray(value).tobytes()
    # a value of a library that is not loaded cannot have come from it
    torch, pillow = sys.modules.get("torch"), sys.modules.get("PIL.Image")
    if torch is not None and isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return f"tensor {value.dtype} {list(value.shape)}", flat.numpy().tobytes()
    if pillow is not None and isinstance(value, pillow.Image):
        return f"picture {value.mode} {list(value.size)}", value.tobytes()
    raise CachesmithError(
        f"the contents of a {type(value).__name__} cannot be told; give numbers, text, lists, tensors, arrays, "
        "pictures (PIL) or a pathlib.Path to a file"
    )
