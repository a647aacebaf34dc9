"""Arguments that a pipeline takes and makes nothing of, where diffusers' pipelines say nothing."""

import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

TRUE_SCALE = "true_cfg_scale"
"""Guidance by a negative prompt, in pipelines where `guidance_scale` is an input of the network."""

SCALE = "guidance_scale"
_GUIDED = "do_classifier_free_guidance"


def without_effect(
    pipe: Any, given: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> Iterator[str]:
    """Yield a sentence for every argument of `given` that changes nothing, with what would give it an effect."""
    defaults = {n: p.default for n, p in parameters.items() if p.default is not inspect.Parameter.empty}
    known = {**defaults, **given}
    if TRUE_SCALE in known and not hasattr(type(pipe), _GUIDED):
        yield from _true_guidance(pipe, given, known, defaults.get(SCALE))
    elif _number(known.get(SCALE)) is not None and not _guided(pipe, known[SCALE]):
        yield from _needless_negative(pipe, given, SCALE, known[SCALE])


def _true_guidance(
    pipe: Any, given: Mapping[str, Any], known: Mapping[str, Any], usual: float | None
) -> Iterator[str]:
    name, scale = type(pipe).__name__, _number(known[TRUE_SCALE]) or 0.0
    if scale <= 1:
        yield from _needless_negative(pipe, given, TRUE_SCALE, scale)
    elif all(value is None for argument, value in known.items() if argument.startswith("negative_prompt")):
        yield (
            f"{name} makes nothing of a {TRUE_SCALE!r} of {scale:g} without a negative prompt; give one (a space will "
            f"do), or give a {TRUE_SCALE!r} of 1"
        )
    config = getattr(getattr(pipe, "transformer", None), "config", {})
    if config.get("guidance_embeds") is False and given.get(SCALE) not in (None, usual):
        yield (
            f"{name} makes nothing of {SCALE!r} with this transformer, which has no input for it; leave it out, or "
            f"give {TRUE_SCALE!r} and a negative prompt"
        )


def _needless_negative(pipe: Any, given: Mapping[str, Any], argument: str, scale: float) -> Iterator[str]:
    """Yield what to say of a negative prompt without guidance; an empty one is as good as none."""
    said = [n for n, v in given.items() if n.startswith("negative_prompt") and _says_something(v)]
    if said:
        yield (
            f"{type(pipe).__name__} makes nothing of {said[0]!r} while {argument!r} is {scale:g}; give a larger "
            "one, for which every step is computed twice, or leave the negative prompt out"
        )


def _guided(pipe: Any, scale: float) -> bool:
    """Whether the pipeline would compute a negative prompt: what it says, else what all do that do not say."""
    if not hasattr(type(pipe), _GUIDED):
        return scale > 1
    asked = copy.copy(pipe)
    asked._guidance_scale = scale
    try:
        return bool(getattr(asked, _GUIDED))
    except (AttributeError, TypeError):  # it is about more than the scale
        return True


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) else None


def _says_something(negative: Any) -> bool:
    return bool(negative.strip()) if isinstance(negative, str) else negative is not None
