"""Prompt sets: what to sample, with which seeds, and the split into fitting, validation and held-out parts."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from cachesmith.policies import PolicyError

Prompt = str | dict[str, Any]
"""A text prompt, or the pipeline's keyword arguments for one sample, such as `{"class_labels": 3}`."""


@dataclass(frozen=True)
class Request:
    """One sample: pipeline arguments and the seed of its initial noise."""

    arguments: dict[str, Any]
    seed: int


@dataclass(frozen=True)
class Split:
    """Disjoint requests: `fitting` drives the search, `validation` picks candidates, `heldout` is measured last."""

    fitting: tuple[Request, ...]
    validation: tuple[Request, ...]
    heldout: tuple[Request, ...]


def read_prompts(path: Path) -> list[Prompt]:
    """Read one prompt a line: plain text, or a JSON object of pipeline arguments. Raises `PolicyError`."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        prompts = [json.loads(line) if line.startswith("{") else line for line in lines if line]
    except (OSError, ValueError) as error:
        raise PolicyError(
            f"cannot read prompts from {path}: {error}; give one prompt or JSON object a line"
        ) from None
    if not prompts:
        raise PolicyError(f"{path} holds no prompts; give one prompt or JSON object a line")
    return prompts


def requests(prompts: Sequence[Prompt], count: int, first_seed: int) -> tuple[Request, ...]:
    """Make `count` requests from `prompts` in turn, with consecutive seeds from `first_seed`."""
    arguments = [{"prompt": p} if isinstance(p, str) else dict(p) for p in prompts]
    return tuple(Request(arguments[i % len(arguments)], first_seed + i) for i in range(count))


def split(prompts: Sequence[Prompt], fitting: int, validation: int, heldout: int, seed: int) -> Split:
    """Split prompts and seeds into three disjoint parts of the given sizes.

    With enough prompts every part has its own; with few (class labels, say) prompts recur but seeds never do.
    """
    sizes = (fitting, validation, heldout)
    wanted = sum(sizes)
    if len(prompts) >= 3:
        borders = [0, *(round(len(prompts) * sum(sizes[: i + 1]) / wanted) for i in range(3))]
        parts = [prompts[a:b] or prompts for a, b in pairwise(borders)]
    else:
        parts = [prompts] * 3
    if len(prompts) < wanted:
        parts = [prompts] * 3
    first = [seed * 1_000_000 + offset for offset in (0, 100_000, 200_000)]
    made = [requests(part, size, start) for part, size, start in zip(parts, sizes, first, strict=True)]
    return Split(*made)


def digest(items: Sequence[Request]) -> str:
    """Sha256 of the requests' arguments."""
    text = json.dumps([item.arguments for item in items], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
