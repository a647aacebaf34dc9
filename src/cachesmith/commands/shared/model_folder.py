"""What a model's small files tell before its weights are loaded."""

from pathlib import Path
from typing import Any

from cachesmith.commands.options import Loading
from cachesmith.commands.shared.loading_causes import cause
from cachesmith.policies import MAIN, CachesmithError, Policy, denoiser_policy
from cachesmith.policies.file.reach import expect_reply


def check_model_name(model: str, loading: Loading) -> None:
    """Raise `CachesmithError` where a model can be neither a pipeline folder nor a hub id."""
    path = Path(model)
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise CachesmithError(
                f"{model} is no diffusers pipeline: it has no model_index.json; "
                "give the folder that pipe.save_pretrained() wrote"
            )
        if loading.revision is not None:
            raise CachesmithError(f"{model} is a folder, which has no revisions; leave --revision out")
    elif path.exists():
        raise CachesmithError(f"{model} is a file; give the folder that pipe.save_pretrained() wrote")
    elif path.is_absolute() or model.startswith((".", "~")) or len(path.parts) > 2:
        raise CachesmithError(
            f"there is no folder {model}; give a pipeline folder or a hub id such as org/name"
        )


def read_index(model: str, loading: Loading) -> dict[str, Any]:
    """Return a model's model_index.json.

    Raises `CachesmithError` where there is none to be had: whoever asks the hub waits for its answer once.
    """
    import diffusers

    try:
        _expect(model, loading, "model_index.json")
        index = diffusers.DiffusionPipeline.load_config(model, revision=loading.revision, token=loading.token)
    except Exception as error:  # whatever a foreign folder or the network makes the reader raise
        raise CachesmithError(cause(model, loading.variant, loading.revision, error)) from error
    return index if isinstance(index, dict) else {}


def _expect(model: str, loading: Loading, file: str) -> None:
    """Raise the network's error within seconds where a file must come from the hub and nothing answers there."""
    if not Path(model).is_dir():
        expect_reply(model, file, loading.revision)


def check_policy(model: str, loading: Loading, policy: Policy, index: dict[str, Any]) -> None:
    """Raise `PolicyError` if the model's configuration is not that of the policy; what cannot be read is let pass.

    The transformer is built without memory for its weights, so that every default of its class counts as it does later.
    """
    from cachesmith.runtime.match import Match, check_denoisers

    parts = {name for name, value in index.items() if _loaded(value)}
    if MAIN in parts:
        check_denoisers(policy, parts)
    for name in (MAIN, *policy.document.models):
        transformer, own = hollow_transformer(model, loading, name), denoiser_policy(policy, name)
        if transformer is not None and own is not None:
            Match(own).architecture(transformer)


def _loaded(value: Any) -> bool:
    """Whether an entry of model_index.json names a class: a component that is left out has none."""
    return isinstance(value, list | tuple) and all(value)


def pipeline_class(index: dict[str, Any]) -> Any:
    """Return the class that a model_index.json names; None where diffusers has none of the name."""
    import diffusers

    name = index.get("_class_name")
    return getattr(diffusers, name, None) if isinstance(name, str) else None


def hollow_transformer(model: str, loading: Loading, name: str = "transformer") -> Any:
    """Return a model's transformer without memory for its weights; None where its configuration cannot be read."""
    import diffusers
    import torch

    try:
        _expect(model, loading, f"{name}/config.json")
        config: Any = diffusers.AutoModel.load_config(
            model, revision=loading.revision, token=loading.token, subfolder=name
        )
        with torch.device("meta"):
            return getattr(diffusers, config["_class_name"]).from_config(config)
    except Exception:  # foreign files: the loader, which comes next, says what is wrong with them
        return None
