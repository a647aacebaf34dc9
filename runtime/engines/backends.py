"""The backends by name. A backend knows nothing of caching: tensors in, tensors out."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from cachesmith.policies import EngineError
from cachesmith.policies.bundle.manifest import Manifest
from cachesmith.runtime.engines.onnxruntime_backend import open_onnxruntime
from cachesmith.runtime.engines.segment_call import LoadOptions, SegmentCall
from cachesmith.runtime.engines.tensorrt_backend import open_tensorrt

Opener = Callable[[Path, Manifest, LoadOptions], dict[str, SegmentCall]]
"""Loads all segments of a verified bundle, by name; raises `EngineError` when this machine cannot run them."""

BACKENDS: dict[str, Opener] = {
    "onnxruntime": open_onnxruntime,
    "onnxruntime-tensorrt": partial(open_onnxruntime, tensorrt=True),
    "tensorrt": open_tensorrt,
    "tensorrt-rtx": open_tensorrt,
}


def opener(name: str, manifest: Manifest) -> Opener:
    """Return the backend called `name`; raise `EngineError` when there is none or the bundle has nothing for it."""
    if name not in BACKENDS:
        raise EngineError(f"there is no backend {name!r}; choose from {', '.join(BACKENDS)}")
    if not name.startswith("onnxruntime") and name != manifest.target:
        raise EngineError(
            f"the bundle holds engines for {manifest.target}, not for {name}; export it with --target {name}"
        )
    return BACKENDS[name]
