"""Engines of another GPU or version are refused before they are opened."""

import sys

import pytest
import torch

from cachesmith.policies import EngineError
from cachesmith.policies.bundle.manifest import Build
from cachesmith.runtime.engines.tensorrt_version import Machine, check_machine, tensorrt_module, this_machine

L4 = Machine("11.4.0.106", "NVIDIA L4", "8.9")
BUILD = Build(version="11.4.0.106", gpu="NVIDIA L4", capabilities=("8.9",), level=3)


def altered(**changes: object) -> Build:
    return Build.model_validate({**BUILD.model_dump(), **changes})


def test_the_same_machine_is_fine() -> None:
    check_machine(BUILD, "tensorrt", L4)


@pytest.mark.parametrize(
    ("build", "target", "message"),
    [
        (
            altered(gpu="NVIDIA H100 PCIe", capabilities=("9.0",)),
            "tensorrt",
            "built for NVIDIA H100 PCIe, here is NVIDIA L4",
        ),
        (altered(gpu="NVIDIA L40S"), "tensorrt", "built for NVIDIA L40S"),
        (
            altered(gpu=None, capabilities=("12.0", "9.0")),
            "tensorrt-rtx",
            "for compute capability 12.0, 9.0, here is",
        ),
        (
            altered(version="11.3.0.99"),
            "tensorrt",
            "built by tensorrt 11.3.0.99, here is 11.4.0.106; install tensorrt==11.3",
        ),
        (altered(version="12.0.0", flags=("VERSION_COMPATIBLE",)), "tensorrt", "built by tensorrt 12.0.0"),
        (
            altered(hardware="SAME_COMPUTE_CAPABILITY", capabilities=("9.0",)),
            "tensorrt",
            "export again on this machine",
        ),
    ],
)
def test_foreign_engines_are_refused(build: Build, target: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        check_machine(build, target, L4)


@pytest.mark.parametrize(
    ("build", "target"),
    [
        (altered(gpu=None, capabilities=("8.9", "12.0")), "tensorrt-rtx"),
        (altered(version="10.13.0", flags=("VERSION_COMPATIBLE",)), "tensorrt"),
        (altered(gpu="NVIDIA A100", capabilities=("8.0",), hardware="AMPERE_PLUS"), "tensorrt"),
        (altered(gpu="NVIDIA L40S", hardware="SAME_COMPUTE_CAPABILITY"), "tensorrt"),
    ],
)
def test_portable_engines_are_not(build: Build, target: str) -> None:
    check_machine(build, target, L4)


def test_without_a_gpu() -> None:
    with pytest.raises(EngineError, match="need an NVIDIA GPU and the model is on cpu"):
        this_machine(sys, torch.device("cpu"))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"pip install 'cachesmith\[tensorrt\]', or choose onnxruntime"):
        tensorrt_module("tensorrt")
