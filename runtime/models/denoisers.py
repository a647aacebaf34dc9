"""The networks of a pipeline that a scheduler drives."""

import re
from collections.abc import Collection
from typing import Any

from torch import nn

from cachesmith.policies import MAIN, PolicyError

_NAMES = re.compile(r"(unconditional_)?transformer(_\d+)?")


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """Every denoiser of a pipeline by its name, the main one first.

    Wan 2.2 changes to `transformer_2` on the way; Ideogram 4 computes the other half of guidance by one of its own.

    A bare transformer is its own only denoiser. Raises `PolicyError` when there is none.
    """
    if isinstance(pipe, nn.Module):
        return {"transformer": pipe}
    named = {
        n: m
        for n, m in getattr(pipe, "__dict__", {}).items()
        if _NAMES.fullmatch(n) and isinstance(m, nn.Module)
    }
    if not named and isinstance(other := getattr(pipe, "transformer", None), nn.Module):
        named = {"transformer": other}
    if not named:
        raise PolicyError(
            f"{type(pipe).__name__} has no `transformer`; cachesmith caches diffusion transformers"
        )
    return dict(sorted(named.items()))


def part_name(name: str, named: Collection[str]) -> str:
    """Which part of a policy, and of a bundle, is for a denoiser: the only one of a pipeline follows the main one."""
    return name if len(named) > 1 else MAIN
