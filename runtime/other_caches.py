"""Other tools' caches: two that forecast from one another's forecasts make pictures that nobody asked for."""

from torch import nn

from cachesmith.policies import PolicyError
from cachesmith.runtime.models.snapshot import Network

CACHES = ("_cache", "pyramid_attention_broadcast")
"""How the modules of diffusers end in which hooks that cache are defined."""


def check_no_other_cache(name: str, network: Network) -> None:
    """Raise `PolicyError`, with its name, for a cache that is on."""
    found = _of_diffusers(network) or _marked(network.root)
    if found is not None:
        raise PolicyError(
            f"{found} is on in this pipeline's {name}, and two caches at once would forecast from one another; turn it "
            "off (disable_cache() in diffusers and cache-dit), or leave the policy's context"
        )


def _of_diffusers(network: Network) -> str | None:
    config = getattr(network.root, "_cache_config", None)
    if config is not None:
        return f"diffusers' {type(config).__name__}"
    for registry in network.hooks:
        for hook in getattr(registry, "hooks", {}).values():
            if type(hook).__module__.endswith(CACHES):
                return f"diffusers' {type(hook).__name__}"
    return None


def _marked(transformer: nn.Module) -> str | None:
    """cache-dit and ParaAttention mark a transformer that they cache."""
    return "cache-dit or ParaAttention" if vars(transformer).get("_is_cached") is True else None
