"""A part as an ONNX graph, with its weights beside it."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cachesmith.export.record import PartCall, at_seen_size
from cachesmith.policies import EngineError
from cachesmith.runtime.models.engine_segment import BATCH, FlatSegment, Interface

Axes = Mapping[str, tuple[str | int, ...]]


def require_onnx() -> Any:
    """Import onnx; raise `EngineError` naming the extra to install."""
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise EngineError(f"{error}; pip install 'cachesmith[export]'") from None
    return onnx


def write_onnx(
    members: tuple[nn.Module, ...], face: Interface, samples: Sequence[PartCall], path: Path, opset: int
) -> Interface:
    """Write the graph of consecutive blocks that were called with `samples`; return the interface that it has.

    Where torch can make none for any number of tokens, and only one was seen, the graph is for that one.
    Raises `EngineError` when torch cannot export the part or onnx finds the graph invalid.
    """
    try:
        _write(FlatSegment(members, face), samples[0].inputs, face.axes, path, opset)
    except EngineError:
        alone = at_seen_size(face, samples)
        if alone == face:
            raise
        _write(FlatSegment(members, alone), samples[0].inputs, alone.axes, path, opset)
        return alone
    return face


def _write(module: FlatSegment, example: Mapping[str, Tensor], axes: Axes, path: Path, opset: int) -> None:
    """Write `path` and, for the weights, `path`.data.

    example: recorded inputs by name; `axes` names their variable extents.
    Raises `EngineError` when torch cannot export the part or onnx finds the graph invalid.
    """
    require_onnx()
    _complete_torchlib()
    names = module.interface.inputs
    device = next(module.parameters()).device
    inputs = tuple(value.to(device) for value in _widened(example, axes, names))
    dynamic = tuple({i: a for i, a in enumerate(axes[n]) if isinstance(a, str)} for n in names)
    outputs = [f"{name}_out" for name in module.interface.outputs]
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(), inputs, dynamo=True, opset_version=opset, dynamic_shapes=(dynamic,),
                input_names=list(names), output_names=outputs, verbose=False,
                custom_translation_table={torch.ops.aten.squeeze.dim: _squeeze},
            )  # fmt: skip
            assert program is not None
            program.save(str(path), external_data=True)
    except torch.onnx.errors.OnnxExporterError as error:
        raise EngineError(f"torch cannot export {path.stem}: {str(error)[:500]}") from error
    check_graph(path)


def check_graph(path: Path) -> None:
    """Raise `EngineError` when onnx finds the graph at `path` invalid."""
    onnx = require_onnx()
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        said = " ".join(str(error).split())[:300]
        raise EngineError(
            f"torch exported {path.stem} as an invalid graph: {said}; try another --opset"
        ) from None


def describe_model(source: Path, target: Path, about: Mapping[str, str]) -> None:
    """Copy a graph, not its weights, with metadata properties and without notes on this machine's paths."""
    onnx = require_onnx()
    model = onnx.load(str(source), load_external_data=False)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(about))
    for nodes in (model.graph.node, *(f.node for f in model.functions)):
        for node in nodes:
            del node.metadata_props[:]
            node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    target.write_bytes(model.SerializeToString(deterministic=True))


@cache
def _complete_torchlib() -> None:
    """Teach onnxscript what its library lacks for complex tensors, which it holds as pairs [..., 2]."""
    from onnxscript.function_libs.torch_lib.registration import torch_op
    from onnxscript.onnx_opset import opset18

    @torch_op("aten::unsqueeze", complex=True, trace_only=True)  # type: ignore[untyped-decorator]
    def unsqueeze(self, dim: int):  # type: ignore[no-untyped-def]
        return opset18.Unsqueeze(self, [dim if dim >= 0 else dim - 1])


def _squeeze(self: Any, dim: int) -> Any:
    """`Tensor.squeeze(dim)` leaves an axis that is not 1 as it is; ONNX's Squeeze would fail at it."""
    from onnxscript.onnx_opset import opset18

    shape = self.shape
    if shape is None or len(shape) == 0 or shape[dim] != 1:
        return opset18.Identity(self)
    return opset18.Squeeze(self, [dim])


def _widened(example: Mapping[str, Tensor], axes: Axes, names: tuple[str, ...]) -> Iterator[Tensor]:
    """The exporter takes an extent of 1 for a constant, so a batch of one is doubled."""
    for name in names:
        value = example[name]
        for place, axis in enumerate(axes[name]):
            if axis == BATCH and value.shape[place] == 1:
                value = torch.cat([value, value], place)
        yield value


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks on packages it does not need."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
