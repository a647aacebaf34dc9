"""cachesmith: calibrated feature caching for Diffusion Transformers."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cachesmith.runtime import replicate

__all__ = ["__version__", "replicate"]

__version__ = version("cachesmith")


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for: the command line answers without."""
    if name == "replicate":
        from cachesmith.runtime import replicate

        return replicate
    raise AttributeError(f"module 'cachesmith' has no attribute {name!r}")
