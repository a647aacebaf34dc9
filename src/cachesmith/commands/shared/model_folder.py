"""What a model's small files tell before its weights are loaded."""

from pathlib import Path
from typing import Any

from cachesmith.commands.options import Loading
from cachesmith.policies import MAIN, CachesmithError, Policy, denoiser_policy


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


def check_policy(model: str, loading: Loading, policy: Policy) -> None:
    """Raise `PolicyError` if the model's configuration is not that of the policy; what cannot be read is let pass.

    The transformer is built without memory for its weights, so that every default of its class counts as it does later.
    """
    import diffusers

    from cachesmith.runtime.match import Match, check_denoisers

    parts = {
        name for name, value in _config(diffusers.DiffusionPipeline, model, loading).items() if _loaded(value)
    }
    if MAIN in parts:
        check_denoisers(policy, parts)
    for name in (MAIN, *policy.document.models):
        transformer, own = hollow_transformer(model, loading, name), denoiser_policy(policy, name)
        if transformer is not None and own is not None:
            Match(own).architecture(transformer)


def _loaded(value: Any) -> bool:
    """Whether an entry of model_index.json names a class: a component that is left out has none."""
    return isinstance(value, list | tuple) and all(value)


def pipeline_class(model: str, loading: Loading) -> Any:
    """Return the class that the model names; None if that cannot be read."""
    import diffusers

    name = _config(diffusers.DiffusionPipeline, model, loading).get("_class_name")
    return getattr(diffusers, name, None) if isinstance(name, str) else None


def hollow_transformer(model: str, loading: Loading, name: str = "transformer") -> Any:
    """Return a model's transformer without memory for its weights; None where its configuration cannot be read."""
    import diffusers
    import torch

    config = _config(diffusers.AutoModel, model, loading, subfolder=name)
    try:
        with torch.device("meta"):
            return getattr(diffusers, config["_class_name"]).from_config(config)
    except Exception:  # foreign files: the loader, which comes next, says what is wrong with them
        return None


def _config(kind: Any, model: str, loading: Loading, **where: str) -> dict[str, Any]:
    """Return a model's configuration file, empty where the loader, which comes next, will refuse it."""
    try:
        config = kind.load_config(model, revision=loading.revision, token=loading.token, **where)
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
