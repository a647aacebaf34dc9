"""Names, dtypes and extents of a part's tensors, from what was recorded."""

from collections.abc import Sequence
from typing import get_args

from cachesmith.export.config import ExportConfig
from cachesmith.export.record import PartCall
from cachesmith.policies import EngineError
from cachesmith.policies.bundle.manifest import DType, Range, TensorSpec
from cachesmith.runtime.models.engine_segment import BATCH, TOKENS, Interface

Specs = tuple[TensorSpec, ...]


def specs(face: Interface, sample: PartCall) -> tuple[Specs, Specs]:
    """Return the inputs and outputs of a part. Outputs have the axes of the stream they carry on."""
    kinds = {name: str(value.dtype).removeprefix("torch.") for name, value in sample.inputs.items()}
    odd = next((name for name, kind in kinds.items() if kind not in get_args(DType)), None)
    if odd is not None:
        raise EngineError(
            f"the blocks are given `{odd}` as {kinds[odd]}, which no engine takes; run them in torch"
        )
    axes = face.axes
    inputs = tuple(_spec(name, kinds[name], axes[name]) for name in face.inputs)
    return inputs, tuple(_spec(f"{name}_out", kinds[name], axes[name]) for name in face.outputs)


def axis_ranges(
    face: Interface, inputs: Specs, samples: Sequence[PartCall], config: ExportConfig, halved: bool = False
) -> dict[str, Range]:
    """Return the extents of every variable axis.

    The batch is `config.pictures` times what guidance makes of one picture, and if some steps are computed for half of
    it (`halved`), down to half of the smallest; tokens are those seen, or `config.tokens` for the pictures' own stream.
    """
    found: dict[str, Range] = {}
    for spec in inputs:
        for place, axis in enumerate(spec.axes):
            if isinstance(axis, str) and axis not in found:
                seen = [s.inputs[spec.name].shape[place] for s in samples]
                found[axis] = Range(min=min(seen), opt=max(seen), max=max(seen))
    found[BATCH] = _batches(found[BATCH], config)
    if halved:
        found[BATCH] = found[BATCH].model_copy(update={"min": max(1, found[BATCH].min // 2)})
    if config.tokens is not None:
        own = f"hidden_states_{TOKENS}"
        axis = own if own in found else TOKENS
        if axis not in found:
            raise EngineError(
                "the blocks are made for the size that was recorded, so the number of tokens cannot vary; leave out "
                "--tokens"
            )
        found[axis] = config.tokens
    parts = [found[f"{name}_{TOKENS}"] for name in face.streams if f"{name}_{TOKENS}" in found]
    if parts and TOKENS in found:
        found[TOKENS] = Range(**{end: sum(getattr(p, end) for p in parts) for end in ("min", "opt", "max")})
    return found


def _batches(seen: Range, config: ExportConfig) -> Range:
    counts = {pictures_per_call(request) for request in config.requests}
    if len(counts) != 1 or seen.min != seen.max or seen.min % max(counts):
        raise EngineError(
            f"the requests sample {sorted(counts)} pictures, in batches of {seen.min} to {seen.max}; give requests of "
            "the same number of pictures"
        )
    factor = seen.min // max(counts)
    pictures = config.pictures
    return Range(min=pictures.min * factor, opt=pictures.opt * factor, max=pictures.max * factor)


def pictures_per_call(request: dict[str, object]) -> int:
    """Number of pictures one call of the pipeline samples."""
    many = request.get("num_images_per_prompt", 1)
    lists = [request.get(name) for name in ("class_labels", "prompt", "prompt_embeds")]
    length = next((len(x) for x in lists if hasattr(x, "__len__") and not isinstance(x, str)), 1)
    return length * (many if isinstance(many, int) else 1)


def _spec(name: str, dtype: str, axes: tuple[str | int, ...]) -> TensorSpec:
    return TensorSpec.model_validate({"name": name, "dtype": dtype, "axes": axes})
