"""One sample to draw, and lists of them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cachesmith.policies import PolicyError
from cachesmith.sampling.requests.contents import plain
from cachesmith.sampling.requests.files import File, open_file

Prompt = str | dict[str, Any]
"""A text prompt, or the pipeline's keyword arguments for one sample, such as `{"class_labels": 3}`."""

SEEDS = range(-(2**63), 2**64)
"""Seeds that a torch generator takes."""


class FileRow(dict[str, Any]):
    """Arguments that were read from a file; `where` names the place for messages."""

    where = ""


@dataclass(frozen=True, eq=False, repr=False)
class Request:
    """One sample: pipeline arguments and the seed of its initial noise. Two are equal if their contents are.

    Arguments are what the pipeline takes for one sample: numbers, text, tensors with a leading dimension of 1, arrays,
    pictures, lists of these, and `File`s, which are read when they are needed.
    """

    arguments: dict[str, Any]
    seed: int
    where: str = field(default="")

    @cached_property
    def contents(self) -> str:
        """The arguments as JSON with sorted keys; see `plain`."""
        return json.dumps(plain(self.arguments), sort_keys=True)

    def loaded(self) -> dict[str, Any]:
        """Return the arguments with every file read."""
        return {name: _loaded(value) for name, value in self.arguments.items()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Request) and (self.contents, self.seed) == (other.contents, other.seed)

    def __hash__(self) -> int:
        return hash((self.contents, self.seed))

    def __repr__(self) -> str:
        return f"Request(arguments={plain(self.arguments)!r}, seed={self.seed!r})"


def requests(prompts: Sequence[Prompt], count: int, first_seed: int) -> tuple[Request, ...]:
    """Make `count` requests from `prompts` in turn, with consecutive seeds from `first_seed`.

    Raises `PolicyError` for seeds that are no 64-bit numbers, and for files that cannot be read.
    """
    if first_seed not in SEEDS or first_seed + count - 1 not in SEEDS:
        raise PolicyError(
            f"seeds from {first_seed} to {first_seed + count - 1} are no 64-bit numbers; "
            f"begin between {SEEDS.start} and {SEEDS.stop - count}"
        )
    rows = [_row(prompt) for prompt in prompts]
    turns = (rows[i % len(rows)] for i in range(count))
    return tuple(Request(dict(row), first_seed + i, row.where) for i, row in enumerate(turns))


def completed(prompts: Sequence[Prompt], common: Mapping[str, Any]) -> list[Prompt]:
    """Give every prompt those of the `common` arguments that it does not have itself."""
    return [_completed(_row(prompt), common) if common else prompt for prompt in prompts]


def _completed(row: FileRow, common: Mapping[str, Any]) -> FileRow:
    whole = FileRow({**common, **row})
    whole.where = row.where
    return whole


def _row(prompt: Prompt) -> FileRow:
    if isinstance(prompt, FileRow):
        return prompt
    given = {"prompt": prompt} if isinstance(prompt, str) else prompt
    return FileRow({name: _opened(value, name) for name, value in given.items()})


def _opened(value: Any, name: str) -> Any:
    if isinstance(value, list | tuple):
        opened = [_opened(item, name) for item in value]
        return tuple(opened) if isinstance(value, tuple) else opened
    return open_file(str(value), Path(), name) if isinstance(value, Path) else value


def _loaded(value: Any) -> Any:
    if isinstance(value, list | tuple):
        loaded = [_loaded(item) for item in value]
        return tuple(loaded) if isinstance(value, tuple) else loaded
    return value.load() if isinstance(value, File) else value


def requests_digest(items: Sequence[Request]) -> str:
    """Sha256 of the requests' arguments, of tensors, pictures and files that of their contents."""
    return hashlib.sha256(f"[{', '.join(item.contents for item in items)}]".encode()).hexdigest()


def derived_seed(seed: int, number: int = 0, *, stride: int = 10_007, bits: int = 32) -> int:
    """Return `seed * stride + number` as a number of so many bits, for libraries that take no larger one.

    The same for the same arguments, and different for different `number`s below 2**bits.
    """
    return (seed * stride + number) % (1 << bits)
