"""cachesmith: calibrated feature caching for Diffusion Transformers."""

from importlib.metadata import version

__version__ = version("cachesmith")
