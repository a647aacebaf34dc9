"""Can engines built there run here? TensorRT plans are tied to a version and to GPUs."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from cachesmith.policies import EngineError
from cachesmith.policies.bundle.manifest import Build

PACKAGES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Import name of each TensorRT product; both have the same API."""


@dataclass(frozen=True)
class Machine:
    """What engines run on. `capability`: compute capability such as `8.9`."""

    version: str
    gpu: str
    capability: str


def tensorrt_module(target: str) -> Any:
    """Import the TensorRT product of `target`; raise `EngineError` naming the extra to install."""
    try:
        return import_module(PACKAGES[target])
    except ImportError as error:
        raise EngineError(
            f"{target} cannot be imported ({str(error)[:120]}); pip install 'cachesmith[{target}]', "
            "or choose onnxruntime, which runs everywhere"
        ) from None


def this_machine(trt: Any, device: torch.device) -> Machine:
    """Describe the GPU `device`; raise `EngineError` where there is none."""
    if device.type != "cuda" or not torch.cuda.is_available():
        raise EngineError(
            f"TensorRT engines need an NVIDIA GPU and the model is on {device}; move the pipeline to cuda, or use the "
            "bundle with backend onnxruntime"
        )
    major, minor = torch.cuda.get_device_capability(device)
    return Machine(trt.__version__, torch.cuda.get_device_name(device), f"{major}.{minor}")


def check_machine(build: Build, target: str, here: Machine) -> None:
    """Raise `EngineError` when engines of `build` do not run on `here`."""
    portable = "VERSION_COMPATIBLE" in build.flags and _major(build.version) <= _major(here.version)
    if build.version != here.version and not portable:
        raise EngineError(
            f"the engines were built by {target} {build.version}, here is {here.version}; install {target}=="
            f"{build.version} or export again"
        )
    if not _gpu_fits(build, target, here):
        raise EngineError(
            f"the engines were built for {build.gpu or 'compute capability ' + ', '.join(build.capabilities)}, here is "
            f"{here.gpu} ({here.capability}); export again on this machine"
        )


def _gpu_fits(build: Build, target: str, here: Machine) -> bool:
    if target == "tensorrt-rtx" or build.hardware == "SAME_COMPUTE_CAPABILITY":
        return here.capability in build.capabilities
    if build.hardware == "AMPERE_PLUS":
        return _major(here.capability) >= 8
    return here.gpu == build.gpu and here.capability in build.capabilities


def _major(version: str) -> int:
    return int(version.split(".", 1)[0])
