"""A stand-in for TensorRT on the CPU: the API that `tensorrt_backend` uses, computing in ONNX Runtime.

It reads and writes the bound addresses, so that what is bound wrongly computes wrongly. An engine's bytes are the path
of its ONNX file. `Runtime.faults` names calls that are to fail.
"""

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnxruntime

__name__ = "standin"
__version__ = "11.4.0"

KINDS = {"tensor(float)": ("FLOAT", np.float32), "tensor(int64)": ("INT64", np.int64)}


class Logger:
    ERROR = 1

    def __init__(self, _: int):
        pass


ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED=1)


class Context:
    def __init__(self, engine: "Engine"):
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.streams: list[int] = []
        self.memory = (0, 0)

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return name in self.engine.inputs and "shape" not in Runtime.faults

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.tensors and "address" not in Runtime.faults

    def execute_async_v3(self, stream: int) -> bool:
        self.streams.append(stream)
        feed = {name: self._read(name) for name in self.engine.inputs}
        for name, value in zip(self.engine.outputs, self.engine.session.run(None, feed), strict=True):
            ctypes.memmove(self.addresses[name], np.ascontiguousarray(value).ctypes.data, value.nbytes)
        return "execute" not in Runtime.faults

    def _read(self, name: str) -> np.ndarray[Any, Any]:
        kind, shape = self.engine.tensors[name][1], self.shapes[name]
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        return np.frombuffer(ctypes.string_at(self.addresses[name], size), kind).reshape(shape)


class Engine:
    device_memory_size_v2 = 1000

    def __init__(self, path: str):
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.inputs = {i.name: KINDS[i.type] for i in self.session.get_inputs()}
        self.outputs = {o.name: KINDS[o.type] for o in self.session.get_outputs()}
        self.tensors = self.inputs | self.outputs
        self.contexts: list[Context] = []

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, place: int) -> str:
        return str([*self.tensors][place])

    def get_tensor_mode(self, name: str) -> Any:
        return SimpleNamespace(name="INPUT" if name in self.inputs else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="HALF" if "dtype" in Runtime.faults else self.tensors[name][0])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        ports = [*self.session.get_inputs(), *self.session.get_outputs()]
        shape = next(port.shape for port in ports if port.name == name)
        return tuple(extent if isinstance(extent, int) else -1 for extent in shape)

    def create_execution_context(self, _: int) -> Context | None:
        if "context" in Runtime.faults:
            return None
        self.contexts.append(Context(self))
        return self.contexts[-1]


class Runtime:
    faults: ClassVar[set[str]] = set()
    opened: ClassVar[list[Engine]] = []

    def __init__(self, _: Any):
        pass

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        if "plan" in self.faults:
            return None
        self.opened.append(Engine(str(Path(plan.decode()))))
        return self.opened[-1]
