"""The lines of Python that a card begins with: the pipeline as it was calibrated, under the policy."""

import inspect
from collections.abc import Iterator, Mapping

from cachesmith.policies import Document

DRAWN = {"text-to-image": "images", "text-to-video": "frames", "text-to-audio": "audios"}
"""Task -> where a pipeline's result has what it draws."""


def usage(repo_id: str, document: Document, source: str, revision: str | None, task: str) -> Iterator[str]:
    """Yield lines of code that load the model in the precision, and call it with the steps, scales and size, that the
    policy was calibrated for.

    source: the base model on the Hub. task: a key of `DRAWN`.
    """
    default = "balanced" if "balanced" in document.profiles else next(iter(document.profiles))
    record = document.calibration
    pinned = f', revision="{revision}"' if revision else ""
    dtype = f", dtype=torch.{record.dtype}" if record else ""
    drawn = DRAWN[task]
    yield from ("import torch",) if record else ()
    yield from (
        "from diffusers import DiffusionPipeline",
        "from cachesmith.policies import load",
        "from cachesmith.runtime import apply",
        "",
        f'pipe = DiffusionPipeline.from_pretrained("{source}"{pinned}{dtype}).to("cuda")',
        f'with apply(pipe, load("{repo_id}"), "{default}"):',
        f"    {drawn} = pipe({', '.join(_arguments(document))}).{drawn}",
    )


def _arguments(document: Document) -> Iterator[str]:
    parameters = _parameters(document)
    empty = inspect.Parameter.empty
    needed = [
        name for name, p in parameters.items() if p.default is empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    yield from (f"{name}={name}" for name in dict.fromkeys([*needed, *({"prompt"} & {*parameters})]))
    sampler = document.sampler
    if sampler is None:
        return
    given = {name: value for name, value in sampler.arguments.items() if name in parameters}
    yield f"num_inference_steps={sampler.steps}"
    yield from (f"{name}={value:g}" for name, value in given.items())
    if given.get("true_cfg_scale", 1) > 1:  # which does nothing without
        yield 'negative_prompt=" "'


def _parameters(document: Document) -> Mapping[str, inspect.Parameter]:
    """What the pipeline's class takes, `self` aside; where there is no such class, what most of them take."""
    import diffusers

    found = None if document.model is None else getattr(diffusers, document.model.pipeline, None)
    if found is None:
        usual = ("prompt", "height", "width", "num_frames", "guidance_scale")
        return {name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in usual}
    return dict([*inspect.signature(found.__call__).parameters.items()][1:])
