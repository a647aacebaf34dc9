"""A bfloat16 graph in float32, for runtimes that have no bfloat16 kernels, such as ONNX Runtime's CPU."""

from pathlib import Path
from typing import Any

import numpy as np

from cachesmith.export.to_onnx import require_onnx


def widen(source: Path, target: Path) -> None:
    """Write `source` to `target` with every bfloat16 tensor, cast and port turned into float32."""
    onnx = require_onnx()
    model = onnx.load(str(source))
    kinds = onnx.TensorProto
    for graph in (model.graph, *_subgraphs(model.graph)):
        for tensor in graph.initializer:
            _widen_tensor(onnx, tensor)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == kinds.BFLOAT16:
                value.type.tensor_type.elem_type = kinds.FLOAT
        for node in graph.node:
            for attribute in node.attribute:
                _widen_attribute(onnx, node.op_type, attribute)
    onnx.save(model, str(target), save_as_external_data=True, location=f"{target.name}.data")


def _widen_attribute(onnx: Any, operator: str, attribute: Any) -> None:
    if operator == "Cast" and attribute.name == "to" and attribute.i == onnx.TensorProto.BFLOAT16:
        attribute.i = onnx.TensorProto.FLOAT
    if attribute.type == onnx.AttributeProto.TENSOR:
        _widen_tensor(onnx, attribute.t)


def _widen_tensor(onnx: Any, tensor: Any) -> None:
    if tensor.data_type == onnx.TensorProto.BFLOAT16:
        values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def _subgraphs(graph: Any) -> list[Any]:
    return [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
