"""Where a pipeline is put."""

import re
from typing import TYPE_CHECKING

from cachesmith.policies import CachesmithError

if TYPE_CHECKING:
    import torch


def device(name: str | None) -> "torch.device":
    """Return the device of this name, by default the GPU if there is one; raise `CachesmithError` if unusable."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(name)
    except RuntimeError:
        raise CachesmithError(f"there is no device {name!r}; write --device cpu, or cuda, cuda:1") from None
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise CachesmithError("this machine has no CUDA device that torch can use; write --device cpu")
    if not _computes(wanted):
        raise CachesmithError(
            f"torch cannot compute on {name} here; write {' or '.join(f'--device {each}' for each in usable())}"
        )
    return wanted


def planned(name: str | None) -> tuple["torch.device", bool]:
    """Return the device that a plan is for, and whether it is here: a plan for a GPU may be made without one.

    Raises `CachesmithError` for what is no device, or one of another kind that torch cannot use here.
    """
    import torch

    elsewhere = re.fullmatch(r"cuda(:\d+)?", name or "") is not None and not torch.cuda.is_available()
    return (torch.device(name or ""), False) if elsewhere else (device(name), True)


def usual_dtype(place: "torch.device") -> str:
    """Return the precision of a pipeline there, where the user names none."""
    return "float32" if place.type == "cpu" else "bfloat16"


def usable() -> list[str]:
    """Return the kinds of device that torch can compute on, the CPU last."""
    import torch

    return [kind for kind in ("cuda", "mps", "xpu") if _computes(torch.device(kind))] + ["cpu"]


def _computes(wanted: "torch.device") -> bool:
    """Try it: what a build of torch knows by name, the machine may lack; a `meta` device holds no numbers."""
    import torch

    try:
        return float(torch.ones(2, device=wanted).sum()) == 2
    except Exception:  # each backend refuses in its own words and type
        return False
