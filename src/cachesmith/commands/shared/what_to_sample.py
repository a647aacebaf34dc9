"""What the user wants pictures of: texts, class labels, or a file of prompts."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachesmith.policies import CachesmithError

if TYPE_CHECKING:
    from cachesmith.sampling.requests import Request

_LABEL = "class_labels"


def what_to_sample(prompts: list[str], labels: list[str], file: Path | None) -> list[dict[str, Any]]:
    """Return the arguments of every prompt; labels are still as the user wrote them."""
    if [bool(prompts), bool(labels), file is not None].count(True) != 1:
        raise CachesmithError("say what to sample: give either --prompt or --class-label or --prompts")
    if file is not None:
        from cachesmith.sampling.requests import read_prompts

        return [{"prompt": row} if isinstance(row, str) else row for row in read_prompts(file)]
    return [{"prompt": text} for text in prompts] + [{_LABEL: text} for text in labels]


def requests_for(
    pipe: Any, wanted: list[dict[str, Any]], count: int, seed: int, common: dict[str, Any]
) -> "tuple[Request, ...]":
    """Return the requests for `count` pictures of the wanted prompts, in turn; `common`: what they lack."""
    from cachesmith.sampling.requests import completed, requests

    for row in wanted:
        if isinstance(row.get(_LABEL), str):
            row[_LABEL] = class_label(pipe, row[_LABEL])
    return requests(completed(wanted, common), count, seed)


def class_label(pipe: Any, text: str) -> int:
    """Read a class label: a number, or one of the pipeline's label names."""
    names: dict[str, int] = getattr(pipe, "labels", None) or {}
    if text.isdecimal():
        return int(text)
    by_name = {name.lower(): index for name, index in names.items()}
    if text.lower() not in by_name:
        known = ", ".join(list(names)[:20]) or "numbers only"
        raise CachesmithError(f"there is no class label {text!r}; known are: {known}")
    return by_name[text.lower()]
