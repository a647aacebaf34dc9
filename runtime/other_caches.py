"""Other tools' caches: two that forecast from one another's forecasts make pictures that nobody asked for."""

from torch import nn

from cachesmith.policies import PolicyError

CACHES = ("_cache", "pyramid_attention_broadcast")
"""How the modules of diffusers end in which hooks that cache are defined."""


def check_no_other_cache(name: str, transformer: nn.Module) -> None:
    """Raise `PolicyError`, with its name, for a cache that is on."""
    found = _of_diffusers(transformer) or _marked(transformer)
    if found is not None:
        raise PolicyError(
            f"{found} is on in this pipeline's {name}, and two caches at once would forecast from one another; turn it "
            "off (disable_cache() in diffusers and cache-dit), or leave the policy's context"
        )


def _of_diffusers(transformer: nn.Module) -> str | None:
    config = getattr(transformer, "_cache_config", None)
    if config is not None:
        return f"diffusers' {type(config).__name__}"
    for module in transformer.modules():
        for hook in getattr(vars(module).get("_diffusers_hook"), "hooks", {}).values():
            if type(hook).__module__.endswith(CACHES):
                return f"diffusers' {type(hook).__name__}"
    return None


def _marked(transformer: nn.Module) -> str | None:
    """cache-dit and ParaAttention mark a transformer that they cache."""
    return "cache-dit or ParaAttention" if vars(transformer).get("_is_cached") is True else None
