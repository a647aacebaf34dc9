"""Why a model could not be loaded, in one sentence with what to do."""

import re
from collections.abc import Iterator
from pathlib import Path

from cachesmith.commands.failure import first_line, missing

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:-\d+-of-\d+)?\.(?P<variant>[A-Za-z0-9_]+?)"
    r"(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
)
"""Names of weights that were saved as a variant: `diffusion_pytorch_model.fp16.safetensors`."""

GIVE = "give a folder that pipe.save_pretrained() wrote, or a hub id such as org/name"


def cause(model: str, variant: str | None, revision: str | None, error: BaseException) -> str:
    """Return what went wrong: the first known error of the chain decides, else the loader's own words."""
    local = Path(model).is_dir()
    for each in _chain(error):
        if isinstance(each, ModuleNotFoundError) and each.name in ("transformers", "sentencepiece", "peft"):
            return f"cannot load a pipeline from {model}: {missing(each.name)}"
        known = None if local else _hub_cause(model, revision, each)
        if known is not None:
            return known
    variants = sorted(saved_variants(Path(model))) if local else []
    if variants and variant not in variants:
        named = " or ".join(f"--variant {name}" for name in variants)
        return f"{model} holds weights of the variant {', '.join(variants)}; give {named}"
    if local and variant is not None and not variants:
        return f"{model} holds no variant {variant!r}; leave --variant out"
    where = "" if local else f"there is no folder {model}, and the hub gave none: "
    return f"cannot load a pipeline from {model}: {where}{first_line(error)}; {GIVE}"


def saved_variants(folder: Path) -> set[str]:
    """Return the variants among a pipeline folder's weights."""
    matches = (_WEIGHTS.fullmatch(path.name) for path in folder.glob("*/*"))
    return {match["variant"] for match in matches if match is not None}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, then what it was raised from, then what was being handled."""
    if error is not None:
        yield error
        yield from _chain(error.__cause__)
        yield from _chain(error.__context__ if error.__context__ is not error.__cause__ else None)


def _hub_cause(model: str, revision: str | None, error: BaseException) -> str | None:
    from huggingface_hub import errors as hub

    match error:
        case hub.GatedRepoError():
            return (
                f"{model} is gated: accept its terms at https://huggingface.co/{model}, then give --token, "
                "set HF_TOKEN, or log in with `hf auth login`"
            )
        case hub.RepositoryNotFoundError():
            return (
                f"there is no folder {model}, and the hub has no model of this name that you may see; check the name, "
                "and give --token if it is private"
            )
        case hub.RevisionNotFoundError():
            return f"{model} has no revision {revision or 'main'!r} on the hub; change --revision"
        case hub.LocalEntryNotFoundError() | hub.OfflineModeIsEnabled():
            return _unreachable(model)
        case hub.EntryNotFoundError():
            return f"{model} on the hub is no diffusers pipeline: it has no model_index.json; {GIVE}"
    return _unreachable(model) if _is_of_the_network(error) else None


def _unreachable(model: str) -> str:
    return (
        f"there is no folder {model}, the local cache of the hub does not hold it, and the hub cannot be reached; "
        "check the network, or HF_HUB_OFFLINE"
    )


def _is_of_the_network(error: BaseException) -> bool:
    """By name: which library asks the hub changes with its version."""
    return any(each.__name__ in ("TransportError", "ConnectionError") for each in type(error).__mro__)
