"""cachesmith: calibrated feature caching for Diffusion Transformers."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from cachesmith.moved import install

if TYPE_CHECKING:
    from cachesmith.policies import Policy, load, save
    from cachesmith.runtime import apply, disable, enable, replicate

__all__ = ["Policy", "__version__", "apply", "disable", "enable", "load", "replicate", "save"]

__version__ = version("cachesmith")

install()

_FROM = {
    "cachesmith.policies": ("Policy", "load", "save"),
    "cachesmith.runtime": ("apply", "disable", "enable", "replicate"),
}


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for: the command line answers without."""
    for module, names in _FROM.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'cachesmith' has no attribute {name!r}")
