"""What a model's small files tell before its weights are loaded."""

from pathlib import Path
from typing import Any

from cachesmith.commands.options import Loading
from cachesmith.policies import CachesmithError, Policy, PolicyError


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
    from cachesmith.runtime.match import check_model

    try:
        transformer = _hollow_transformer(model, loading)
    except PolicyError:
        raise
    except Exception:  # foreign files: the loader, which comes next, says what is wrong with them
        return
    check_model(policy, transformer)


def _hollow_transformer(model: str, loading: Loading) -> Any:
    import diffusers
    import torch

    hub = {"revision": loading.revision, "token": loading.token}
    config = diffusers.ModelMixin.load_config(model, subfolder="transformer", **hub)
    with torch.device("meta"):
        return getattr(diffusers, config["_class_name"]).from_config(config)
