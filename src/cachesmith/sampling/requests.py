"""Prompt sets: what to sample, with which seeds, and the split into fitting, validation and held-out parts."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from cachesmith.policies import Calibration, PolicyError

Prompt = str | dict[str, Any]
"""A text prompt, or the pipeline's keyword arguments for one sample, such as `{"class_labels": 3}`."""

DISTINCT = 15
"""Prompts from which on every part of a split has its own."""


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

    Every part has prompts of its own, in turn with other seeds where they are fewer than its samples. With less than
    `DISTINCT` prompts (class labels, say) the parts share them; seeds never recur. A prompt that is listed again is
    left out.
    """
    sizes = (fitting, validation, heldout)
    parts = _parts(prompts, *sizes)
    first = [seed * 1_000_000 + offset for offset in (0, 100_000, 200_000)]
    made = [requests(part, size, start) for part, size, start in zip(parts, sizes, first, strict=True)]
    return Split(*made)


def shares_prompts(prompts: Sequence[Prompt]) -> bool:
    """Say whether the parts of a split share these prompts, because they are too few to be divided."""
    return len(_distinct(prompts)) < DISTINCT


def _distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Leave out what was listed before."""
    once: dict[str, Prompt] = {}
    for prompt, request in zip(prompts, requests(prompts, len(prompts), 0), strict=True):
        once.setdefault(digest([request]), prompt)
    return list(once.values())


def _parts(prompts: Sequence[Prompt], fitting: int, validation: int, heldout: int) -> list[Sequence[Prompt]]:
    """Shuffle and cut in proportion to the sizes, but leave no part less than a fifth where prompts are scarce.

    The last part depends on its size and the sum of the others only, which is what a policy's record keeps.
    """
    distinct = _distinct(prompts)
    if len(distinct) < DISTINCT:
        return [distinct] * 3
    count, wanted = len(distinct), fitting + validation + heldout
    random.Random(0).shuffle(distinct)  # files are often sorted by topic
    least = count // 5 if count < wanted else 0
    last = _between(least, round(count * heldout / wanted), count - 2 * least)
    middle = _between(least, round(count * validation / wanted), count - last - least)
    borders = (0, count - last - middle, count - last, count)
    return [distinct[a:b] for a, b in pairwise(borders)]


def _between(least: int, wanted: int, most: int) -> int:
    return min(max(least, wanted), most)


def heldout_part(prompts: Sequence[Prompt], record: Calibration | None) -> Sequence[Prompt]:
    """Return the prompts that a calibration with this list held out; another list is returned whole.

    The list is split as the calibration did, and the digest tells whether it is the same.
    """
    if record is None:
        return prompts
    part = _parts(prompts, record.fitting_size, 0, record.heldout_size)[-1]
    same = digest(requests(part, record.heldout_size, 0)) == record.heldout_prompts
    return part if same else prompts


def digest(items: Sequence[Request]) -> str:
    """Sha256 of the requests' arguments."""
    text = json.dumps([item.arguments for item in items], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
