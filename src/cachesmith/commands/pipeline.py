"""Open the user's pipeline, and check what it is to be called with before hours are spent on it."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from cachesmith.commands import options
from cachesmith.commands.shared.device import device, usual_dtype
from cachesmith.commands.shared.loading_causes import cause
from cachesmith.commands.shared.model_folder import (
    check_model_name,
    check_policy,
    pipeline_class,
    read_index,
)
from cachesmith.policies import CachesmithError, Policy
from cachesmith.policies.bundle.manifest import read_manifest
from cachesmith.policies.profile import has_fitted
from cachesmith.progress import shows_bars, waiting
from cachesmith.sampling.requests.reserved import RESERVED

if TYPE_CHECKING:
    from cachesmith.runtime import Engines
    from cachesmith.sampling.requests import Request

STEPS = 50
"""Sampler steps where neither the user nor the policy says."""

_TOGETHER = ({"height", "width"}, {"guidance_scale", "guidance_scale_2"})
"""Arguments of which the policy's are not mixed with the user's."""


def open_pipeline(
    model: str,
    loading: options.Loading,
    policy: Policy | None = None,
    given: Iterable[str] = (),
    check: Callable[[Iterable[str]], None] | None = None,
    offload: bool = False,
) -> Any:
    """Load a diffusers pipeline onto a device. Raises `CachesmithError`.

    Before the weights are loaded, the model's configuration is compared with the policy, and its class with the names
    of the arguments that its calls will be `given`; `check` is called with the names of all that they take. offload: a
    component comes onto the device only while it computes.
    """
    check_model_name(model, loading)
    place = device(loading.device)
    if offload and place.type == "cpu":
        raise CachesmithError(
            "--offload is for a model that a GPU computes, and here the CPU does; leave it out"
        )
    hush_libraries()
    index = read_index(model, loading)
    if policy is not None:
        check_policy(model, loading, policy, index)
    if (kind := pipeline_class(index)) is not None:
        parameters = inspect.signature(kind.__call__).parameters
        _check_taken(kind.__name__, given, parameters)
        if check is not None:
            check(parameters)
    pipe = _load(model, loading, loading.dtype or usual_dtype(place))
    pipe.set_progress_bar_config(disable=True)
    if offload:
        pipe.enable_model_cpu_offload(device=place)
        return pipe
    return pipe.to(place)


def open_pipeline_on(model: str, loading: options.Loading, place: str, offload: bool = False) -> Any:
    """As `open_pipeline`, onto the device `place`: for workers, whose other options are the user's."""
    return open_pipeline(model, replace(loading, device=place), offload=offload)


def check_engines(chosen: options.EngineOptions, drop_torch_weights: bool = False) -> None:
    """Raise `CachesmithError` before a model is loaded where there is no bundle to compute with."""
    if chosen.bundle is not None:
        read_manifest(chosen.bundle)
        return
    needless = {
        "--backend": chosen.backend is not None,
        "--outside": chosen.outside != options.Elsewise.error,
        "--cuda-graphs": chosen.cuda_graphs,
        "--drop-torch-weights": drop_torch_weights,
    }
    for option, given in needless.items():
        if given:
            raise CachesmithError(f"{option} is about a bundle's engines; give --bundle as well")


def engines(chosen: options.EngineOptions, pipe: Any) -> "Engines | None":
    """Verify and load the bundle, if one was given, for the pipeline's device. Raises `EngineError`."""
    if chosen.bundle is None:
        return None
    from cachesmith.runtime import open_bundle

    return open_bundle(
        chosen.bundle,
        pipe.device,
        backend=chosen.backend,
        outside=chosen.outside.value,
        cuda_graphs=chosen.cuda_graphs,
    )


def largest_batch(loaded: "Engines | None", batch: int, policy: Policy | None) -> int:
    """Return how many pictures at once, at most `batch`, the bundle's engines take.

    Guidance may double a batch: the policy says whether it does. Without one, it is taken to do so where a batch of one
    was not exported.
    """
    if loaded is None or loaded.outside == "torch":
        return batch
    sampler = None if policy is None else policy.document.sampler
    ranges = [s.ranges["batch"] for s in loaded.manifest.segments if "batch" in s.ranges]
    doubled = [r.min > 1 if sampler is None else sampler.guidance == "batched" for r in ranges]
    most = (r.max // 2 if double else r.max for r, double in zip(ranges, doubled, strict=True))
    return max(1, min([batch, *most]))


def sampling(
    pipe: Any, policy: Policy | None, steps: int | None, chosen: options.Sampling
) -> tuple[int, dict[str, Any]]:
    """Return the number of steps and the arguments of every call: the user's, else the policy's."""
    sampler = None if policy is None else policy.document.sampler
    given = {n: v for n, v in vars(chosen).items() if v is not None and n != "negative_prompt"}
    visited = steps or (STEPS if sampler is None else sampler.steps)
    return visited, {**calibrated_arguments(pipe, policy, given), **given}


def calibrated_arguments(pipe: Any, policy: Policy | None, given: Iterable[str]) -> dict[str, Any]:
    """Return what the policy was calibrated with of scales and size, as far as the pipeline takes it and nothing that
    is `given` goes with it: a height and a width belong together, and so do the two guidance scales of two experts."""
    sampler, named = None if policy is None else policy.document.sampler, {*given}
    found = {} if sampler is None else sampler.arguments
    takes = inspect.signature(pipe.__call__).parameters
    settled = {name for group in _TOGETHER if named & group for name in group} | named
    return {name: value for name, value in found.items() if name in takes and name not in settled}


def check_steps(policy: Policy | None, profiles: Iterable[str | None], steps: int | None) -> None:
    """Raise `CachesmithError` before a model is loaded where weights were fitted for another number of steps."""
    from cachesmith.runtime.match import FEW_STEPS

    sampler = None if policy is None else policy.document.sampler
    if policy is None or sampler is None or steps is None or steps == sampler.steps:
        return
    actions = policy.document.mismatch
    off = actions.steps == "disable" or (steps < FEW_STEPS and actions.few_steps == "disable")
    if not off and any(has_fitted(policy.profile(name)) for name in profiles):
        raise CachesmithError(
            f"the policy's weights were fitted for {sampler.steps} steps and fit no other number; leave "
            f"--num-inference-steps out, or calibrate with --num-inference-steps {steps}"
        )


def of_every_prompt(chosen: options.Sampling) -> dict[str, Any]:
    """Return the arguments that the user gives for all prompts of a file; guidance is an argument of the call."""
    return {
        name: value for name, value in vars(chosen).items() if value is not None and name != "guidance_scale"
    }


def negative_of(chosen: options.Sampling) -> dict[str, Any]:
    """Return the negative prompt as an argument of every prompt: pipelines want as many of it as there are prompts."""
    return {} if chosen.negative_prompt is None else {"negative_prompt": chosen.negative_prompt}


def arguments(chosen: options.Sampling, requests: "Sequence[Request]" = ()) -> set[str]:
    """Return the names of the arguments that the user gives."""
    common = {name for name, value in vars(chosen).items() if value is not None}
    return common.union(*(request.arguments for request in requests))


def require_requests(
    pipe: Any, requests: Sequence["Request"], common: dict[str, Any], steps: int | None = None
) -> None:
    """Raise `CachesmithError` where the pipeline would refuse or ignore what it is called with."""
    from cachesmith.sampling.requests import check_requests

    check_requests(pipe, requests, common, steps)


def _load(model: str, loading: options.Loading, dtype: str) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    files = {"revision": loading.revision, "variant": loading.variant, "token": loading.token}
    try:
        with waiting(f"loading {model}"):
            return DiffusionPipeline.from_pretrained(model, dtype=getattr(torch, dtype), **files)
    except Exception as error:  # whatever a foreign folder or the network makes the loader raise
        raise CachesmithError(cause(model, loading.variant, loading.revision, error)) from error


def hush_libraries() -> None:
    """Keep the libraries' advice out of our output, and their bars where there is no terminal to show them.

    What pipelines say of a call is told all the same, see `shared.spoken`.
    """
    for library in ("diffusers", "transformers"):
        if find_spec(library) is not None:
            logging = import_module(f"{library}.utils.logging")
            logging.set_verbosity_error()
            logging.enable_progress_bar() if shows_bars() else logging.disable_progress_bar()


def _check_taken(
    pipeline: str, given: Iterable[str], parameters: Mapping[str, inspect.Parameter]
) -> list[str]:
    """Return what the pipeline's call takes from a user, once all that is given is among it."""
    takes = [name for name in parameters if name not in (*RESERVED, "self", "args", "kwargs")]
    for name in given:
        if name in RESERVED:
            raise CachesmithError(f"{name!r} cannot be given with a prompt; {RESERVED[name]}")
        if name not in takes:
            raise CachesmithError(f"{pipeline} takes no {name!r}; it takes {', '.join(takes)}")
    return takes
