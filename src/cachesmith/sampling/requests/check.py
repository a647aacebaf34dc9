"""Every argument of every request against what the pipeline takes, before the first sample."""

import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from reprlib import repr as short
from typing import Any

from cachesmith.policies import CachesmithError
from cachesmith.sampling.requests.annotations import kind_of, names_of, only_tuples, takes
from cachesmith.sampling.requests.batches import PER_SAMPLE
from cachesmith.sampling.requests.request import Request
from cachesmith.sampling.requests.reserved import RESERVED
from cachesmith.sampling.requests.rounding import rounding
from cachesmith.sampling.requests.without_effect import without_effect

POSITIVE = ("height", "width", "num_frames", "max_sequence_length")
NOISE_LEVELS = ("sigmas", "timesteps")

Parameters = Mapping[str, inspect.Parameter]


def check_requests(
    pipe: Any, requests: Sequence[Request], common: Mapping[str, Any], steps: int | None = None
) -> None:
    """Raise `CachesmithError` where the pipeline would refuse or misread what it is called with; warn where it takes an
    argument that has no effect.

    common: arguments of every call. steps: sampler steps, where they are known. The message names the place in the
    file of prompts, the argument and its value, and what to write instead.
    """
    parameters = _parameters(pipe)
    for request in requests:
        given, where = {**common, **request.arguments}, f"{request.where}: " if request.where else ""
        try:
            _check_names(type(pipe).__name__, given, parameters)
            for name, value in given.items():
                _check_value(pipe, name, value, parameters.get(name), steps)
            _check_encoder(pipe, given)
            _ask_pipeline(pipe, given, parameters)
            for sentence in (*without_effect(pipe, given, parameters), *rounding(pipe, given, parameters)):
                warnings.warn(sentence, RuntimeWarning, stacklevel=2)
        except CachesmithError as error:
            raise CachesmithError(f"{where}{error}") from None


def as_declared(pipe: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with lists, which is all that JSON has, as tuples where the pipeline takes tuples alone."""
    parameters = _parameters(pipe)

    def declared(name: str, value: Any) -> Any:
        parameter = parameters.get(name)
        alone = isinstance(value, list) and parameter is not None and only_tuples(parameter.annotation)
        return tuple(value) if alone else value

    return {name: declared(name, value) for name, value in given.items()}


def _parameters(pipe: Any) -> Parameters:
    from cachesmith.sampling.loop import SamplingLoop, inputs_of

    if hasattr(pipe, "_blocks"):
        return inputs_of(pipe)
    call = pipe.sample if isinstance(pipe, SamplingLoop) else pipe.__call__
    try:
        return inspect.signature(call, eval_str=True).parameters
    except (NameError, TypeError, SyntaxError):  # annotations that name what is not there
        return inspect.signature(call).parameters


def _check_names(pipeline: str, given: Mapping[str, Any], parameters: Parameters) -> None:
    kinds = inspect.Parameter
    anything = any(p.kind is kinds.VAR_KEYWORD for p in parameters.values())
    named = {n: p for n, p in parameters.items() if p.kind not in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL)}
    accepted = [name for name in named if name not in RESERVED]
    for name, value in given.items():
        if name in RESERVED and not (name == "output_type" and value in ("pt", "latent")):
            raise CachesmithError(f"{name!r} cannot be given with a prompt; {RESERVED[name]}")
        if name not in named and not anything:
            raise CachesmithError(f"{pipeline} takes no {name!r}; it takes {', '.join(accepted)}")
    for name in accepted:
        if named[name].default is kinds.empty and name not in given:
            raise CachesmithError(f"{pipeline} needs {name!r}; give it with every prompt")


def _check_value(
    pipe: Any, name: str, value: Any, parameter: inspect.Parameter | None, steps: int | None
) -> None:
    if name == "class_labels":
        _check_label(pipe, value)
        return
    if name in PER_SAMPLE and not isinstance(value, str | None):
        raise CachesmithError(f"{name!r} is {short(value)}; give one text for each sample, in quotes")
    if isinstance(value, float) and not math.isfinite(value):
        raise CachesmithError(f"{name!r} is {value}; give a finite number")
    # embeddings in a text's place: pipelines with a text for a default want to be told that there is none
    no_text = name in PER_SAMPLE and value is None
    if parameter is not None and not no_text and not takes(parameter, value):
        raise CachesmithError(
            f"{name!r} is {kind_of(value)}, {short(value)}, but {type(pipe).__name__} takes "
            f"{names_of(parameter.annotation)} there"
        )
    if name in POSITIVE and isinstance(value, int | float) and value < 1:
        raise CachesmithError(f"{name!r} is {value}; give a number from 1 on")
    if name in NOISE_LEVELS and steps is not None and isinstance(value, list) and len(value) != steps:
        raise CachesmithError(
            f"{name!r} has {len(value)} noise levels, but {steps} steps are asked for; "
            f"give --num-inference-steps {len(value)}"
        )


def _check_label(pipe: Any, label: object) -> None:
    count = getattr(getattr(getattr(pipe, "transformer", None), "config", None), "num_embeds_ada_norm", None)
    valid = isinstance(label, int) and not isinstance(label, bool) and (count is None or 0 <= label < count)
    if not valid:
        limit = "" if count is None else f" from 0 to {count - 1}"
        raise CachesmithError(
            f"class label {short(label)} is not valid; give one whole number{limit} for each picture"
        )


def _check_encoder(pipe: Any, given: Mapping[str, Any]) -> None:
    """A pipeline without its text encoder takes embeddings only."""
    components = getattr(pipe, "components", {})
    encoders = {n: c for n, c in components.items() if n.startswith("text_encoder")}
    texts = [n for n in given if n in PER_SAMPLE and n != "class_labels" and given[n] is not None]
    if encoders and not any(encoders.values()) and texts:
        raise CachesmithError(
            f"{texts[0]!r} needs a text encoder, and this pipeline was loaded without one; give prompt_embeds, or load "
            "the whole pipeline"
        )


def _ask_pipeline(pipe: Any, given: Mapping[str, Any], parameters: Parameters) -> None:
    """Let the pipeline check what it can by itself: it warns of sizes that it will round.

    Only its refusals count, since it may not be ready for more, and not even those where files are not loaded yet.
    """
    check = getattr(pipe, "check_inputs", None)
    if check is None:
        return
    ready = not any(kind_of(value) == "an object" for value in given.values())
    defaults = {n: p.default for n, p in parameters.items() if p.default is not inspect.Parameter.empty}
    known = {**defaults, **given}
    with suppress(TypeError, AttributeError, KeyError, IndexError, RuntimeError):
        wanted = list(inspect.signature(check).parameters)
        if all(name in known for name in wanted):
            try:
                check(**{name: known[name] for name in wanted})
            except ValueError as error:
                if not ready:
                    return
                raise CachesmithError(f"{type(pipe).__name__} refuses it: {error}") from None
