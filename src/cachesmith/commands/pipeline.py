"""Open the user's pipeline, and check what it is to be called with before hours are spent on it."""

import inspect
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachesmith.commands.failure import first_line
from cachesmith.commands.options import DType, Elsewise
from cachesmith.policies import CachesmithError, Document, Policy

if TYPE_CHECKING:
    import torch

    from cachesmith.runtime import Engines
    from cachesmith.sampling.requests import Request

STEPS = 50
"""Sampler steps where neither the user nor the policy says."""

RESERVED = {
    "num_inference_steps": "use --steps",
    "generator": "use --seed",
    "output_type": "leave it out",
    "num_images_per_prompt": "leave it out",
    "return_dict": "leave it out",
}


def open_pipeline(model: str, device: str | None, dtype: DType | None) -> Any:
    """Load a diffusers pipeline onto a device, quietly. Raises `CachesmithError`."""
    _check_folder(model)
    place = _device(device)
    name = dtype.value if dtype is not None else "float32" if place.type == "cpu" else "bfloat16"
    pipe = _load(model, name)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(place)


def engines(bundle: Path, backend: str | None, outside: Elsewise, graphs: bool, pipe: Any) -> "Engines":
    """Verify and load a bundle for the pipeline's device. Raises `EngineError`."""
    from cachesmith.runtime import open_bundle

    return open_bundle(bundle, pipe.device, backend=backend, outside=outside.value, cuda_graphs=graphs)


def largest_batch(loaded: "Engines", batch: int) -> int:
    """Return how many pictures at once, at most `batch`, the bundle's engines take.

    Guidance may double a batch: it is taken to do so where a batch of one was not exported.
    """
    if loaded.outside == "torch":
        return batch
    ranges = [s.ranges["batch"] for s in loaded.manifest.segments if "batch" in s.ranges]
    return min([batch, *(r.max if r.min == 1 else max(r.max // 2, 1) for r in ranges)])


def sampling(
    policy: Policy | None, steps: int | None, guidance: float | None
) -> tuple[int, dict[str, float]]:
    """Return the number of steps and the arguments of every call: the user's, else the policy's."""
    document = None if policy is None else policy.document
    sampler = None if document is None else document.sampler
    if guidance is None and document is not None:
        guidance = _calibrated_guidance(document)
    chosen = steps or (STEPS if sampler is None else sampler.steps)
    return chosen, {} if guidance is None else {"guidance_scale": guidance}


def check_requests(pipe: Any, requests: Sequence["Request"], common: dict[str, float]) -> None:
    """Raise `CachesmithError` where the pipeline would refuse or ignore what it is called with."""
    parameters = inspect.signature(pipe.__call__).parameters
    for request in requests:
        given = {**common, **request.arguments}
        _check_names(type(pipe).__name__, given, parameters)
        if "class_labels" in given:
            _check_label(pipe, given["class_labels"])


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


def _check_folder(model: str) -> None:
    path = Path(model)
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise CachesmithError(
                f"{model} is no diffusers pipeline: it has no model_index.json; "
                "give the folder that pipe.save_pretrained() wrote"
            )
    elif path.exists():
        raise CachesmithError(f"{model} is a file; give the folder that pipe.save_pretrained() wrote")
    elif path.is_absolute() or model.startswith((".", "~")) or len(path.parts) > 2:
        raise CachesmithError(
            f"there is no folder {model}; give a pipeline folder or a hub id such as org/name"
        )


def _device(name: str | None) -> "torch.device":
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise CachesmithError(f"there is no device {name!r}; write cpu, cuda or cuda:1") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CachesmithError("this machine has no CUDA device that torch can use; write --device cpu")
    return device


def _load(model: str, dtype: str) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    _hush()
    try:
        return DiffusionPipeline.from_pretrained(model, dtype=getattr(torch, dtype))
    except Exception as error:  # whatever a foreign folder or the network makes the loader raise
        where = "" if Path(model).is_dir() else f"there is no folder {model}, and the hub gave none: "
        raise CachesmithError(
            f"cannot load a pipeline from {model}: {where}{first_line(error)}; "
            "give a folder that pipe.save_pretrained() wrote, or a hub id such as org/name"
        ) from error


def _hush() -> None:
    """Keep the libraries' advice and loading bars out of our output; downloads still show theirs."""
    for library in ("diffusers", "transformers"):
        if find_spec(library) is not None:
            logging = import_module(f"{library}.utils.logging")
            logging.set_verbosity_error()
            logging.disable_progress_bar()


def _calibrated_guidance(document: Document) -> float | None:
    """Return the guidance scale a policy was calibrated with, if it was a single one."""
    bounds = None if document.sampler is None else document.sampler.guidance_range
    return bounds[0] if bounds is not None and bounds[0] == bounds[1] else None


def _check_names(pipeline: str, given: dict[str, Any], parameters: Any) -> None:
    takes = [name for name in parameters if name not in RESERVED and name not in ("args", "kwargs")]
    for name in given:
        if name in RESERVED:
            raise CachesmithError(f"{name!r} cannot be given with a prompt; {RESERVED[name]}")
        if name not in takes:
            raise CachesmithError(f"{pipeline} takes no {name!r}; it takes {', '.join(takes)}")
    required = [n for n in takes if parameters[n].default is inspect.Parameter.empty]
    for name in required:
        if name not in given:
            raise CachesmithError(f"{pipeline} needs {name!r}; give it with every prompt")


def _check_label(pipe: Any, label: object) -> None:
    count = getattr(pipe.transformer.config, "num_embeds_ada_norm", None)
    valid = isinstance(label, int) and (count is None or 0 <= label < count)
    if not valid:
        limit = "" if count is None else f" from 0 to {count - 1}"
        raise CachesmithError(
            f"class label {label!r} is not valid; give one whole number{limit} for each picture"
        )
