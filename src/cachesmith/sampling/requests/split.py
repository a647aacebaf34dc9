"""The split of prompts and seeds into fitting, validation and held-out parts."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from cachesmith.policies import Calibration
from cachesmith.sampling.requests.request import Prompt, Request, derived_seed, requests, requests_digest

_DISTINCT = 15
"""Prompts from which on every part of a split has its own."""


@dataclass(frozen=True)
class Split:
    """Disjoint requests: `fitting` drives the search, `validation` picks candidates, `heldout` is measured last."""

    fitting: tuple[Request, ...]
    validation: tuple[Request, ...]
    heldout: tuple[Request, ...]


def split(prompts: Sequence[Prompt], fitting: int, validation: int, heldout: int, seed: int) -> Split:
    """Split prompts and seeds into three disjoint parts of the given sizes.

    Every part has prompts of its own, in turn with other seeds where they are fewer than its samples. With less than
    `_DISTINCT` prompts (class labels, say) the parts share them; seeds never recur. A prompt that is listed again is
    left out.
    """
    sizes = (fitting, validation, heldout)
    parts = _parts(prompts, *sizes)
    first = [derived_seed(seed, offset, stride=1_000_000, bits=63) for offset in (0, 100_000, 200_000)]
    made = [requests(part, size, start) for part, size, start in zip(parts, sizes, first, strict=True)]
    return Split(*made)


def shares_prompts(prompts: Sequence[Prompt]) -> bool:
    """Say whether the parts of a split share these prompts, because they are too few to be divided."""
    return len(_distinct(prompts)) < _DISTINCT


def _distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Leave out what was listed before."""
    once: dict[str, Prompt] = {}
    for prompt, request in zip(prompts, requests(prompts, len(prompts), 0), strict=True):
        once.setdefault(requests_digest([request]), prompt)
    return list(once.values())


def _parts(prompts: Sequence[Prompt], fitting: int, validation: int, heldout: int) -> list[Sequence[Prompt]]:
    """Shuffle and cut in proportion to the sizes, but leave no part less than a fifth where prompts are scarce.

    The last part depends on its size and the sum of the others only, which is what a policy's record keeps.
    """
    distinct = _distinct(prompts)
    if len(distinct) < _DISTINCT:
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
    same = requests_digest(requests(part, record.heldout_size, 0)) == record.heldout_prompts
    return part if same else prompts
