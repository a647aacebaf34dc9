"""The backends by name. A backend knows nothing of caching: tensors in, tensors out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cachesmith.policies import EngineError
from cachesmith.policies.bundle.manifest import Manifest
from cachesmith.runtime.engines.onnxruntime_backend import open_onnxruntime
from cachesmith.runtime.engines.segment_call import LoadOptions, SegmentCall
from cachesmith.runtime.engines.tensorrt_backend import open_tensorrt

Opener = Callable[[Path, Manifest, LoadOptions], dict[str, SegmentCall]]
"""Loads all segments of a verified bundle, by name; raises `EngineError` when this machine cannot run them."""


@dataclass(frozen=True)
class Backend:
    """How one backend runs a bundle.

    engines: whether it runs engines that were built for it; else it runs the ONNX graphs, which every bundle has.
    graphs: whether it can replay CUDA graphs.
    """

    open: Opener
    engines: bool = False
    graphs: bool = False


BACKENDS = {
    "onnxruntime": Backend(open_onnxruntime),
    "onnxruntime-tensorrt": Backend(partial(open_onnxruntime, tensorrt=True)),
    "tensorrt": Backend(open_tensorrt, engines=True, graphs=True),
    "tensorrt-rtx": Backend(open_tensorrt, engines=True),
}


def opener(name: str, manifest: Manifest, cuda_graphs: bool = False) -> Opener:
    """Return what opens bundles in the backend called `name`.

    Raises `EngineError` when there is none, the bundle has nothing for it, or it has no CUDA graphs and is to use them.
    """
    if name not in BACKENDS:
        raise EngineError(f"there is no backend {name!r}; choose from {', '.join(BACKENDS)}")
    backend = BACKENDS[name]
    if backend.engines and name != manifest.target:
        raise EngineError(
            f"the bundle holds engines for {manifest.target}, not for {name}; export it with --target {name}"
        )
    if cuda_graphs and not backend.graphs:
        able = ", ".join(other for other, record in BACKENDS.items() if record.graphs)
        raise EngineError(f"CUDA graphs are for backend {able}, this is {name}; leave them out")
    return backend.open
