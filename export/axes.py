"""Which axes of a part's inputs vary, and with what: from the extents that recorded calls had."""

from collections.abc import Mapping, Sequence

from cachesmith.policies import EngineError
from cachesmith.runtime.models.engine_segment import BATCH, TOKENS

_Shapes = Mapping[str, tuple[int, ...]]
_PER_TOKEN = ("rot", "rope", "freq", "pos", "cos", "sin")
"""Arguments named like these do not have a row for each sample, so that a leading extent of 1 stays 1."""


def axes_of(
    streams: tuple[str, ...], calls: Sequence[_Shapes], sized: bool = False
) -> dict[str, tuple[str | int, ...]]:
    """Name the variable axes of every input of a part; the others keep their extents.

    An axis is `batch` or a number of tokens where its extent was that in every call. One that varied with neither is
    named after its input. Blocks that are told sizes as numbers (`sized`) have those in their graph, and take no other
    number of tokens. Raises `EngineError` where a stream is not [samples, tokens, channels].
    """
    unbatched = next((name for name in streams if len(calls[0][name]) < 3), None)
    if unbatched is not None:
        raise EngineError(
            f"the blocks are given `{unbatched}` without an axis of samples, which no engine takes; run them in torch"
        )
    labels = [_labels(streams, shapes) for shapes in calls]
    axes: dict[str, tuple[str | int, ...]] = {
        name: _stream(name, streams, calls[0][name]) for name in streams
    }
    for name in calls[0]:
        if name not in axes:
            axes[name] = _condition(name, [shapes[name] for shapes in calls], labels)
    if sized:
        return {name: _only_batch(own, calls[0][name]) for name, own in axes.items()}
    return axes


def at_one_size(
    axes: Mapping[str, tuple[str | int, ...]], calls: Sequence[_Shapes]
) -> dict[str, tuple[str | int, ...]]:
    """The same axes for the one size that was seen, but for the batch; unchanged where several were."""
    if any(_inner(call) != _inner(calls[0]) for call in calls):
        return dict(axes)
    return {name: _only_batch(own, calls[0][name]) for name, own in axes.items()}


def _inner(shapes: _Shapes) -> dict[str, tuple[int, ...]]:
    return {name: shape[1:] for name, shape in shapes.items()}


def _only_batch(axes: tuple[str | int, ...], shape: tuple[int, ...]) -> tuple[str | int, ...]:
    return tuple(axis if axis == BATCH else extent for axis, extent in zip(axes, shape, strict=True))


def _stream(name: str, streams: tuple[str, ...], shape: tuple[int, ...]) -> tuple[str | int, ...]:
    return (BATCH, _tokens(name, streams), *shape[2:])


def _tokens(name: str, streams: tuple[str, ...]) -> str:
    return f"{name}_{TOKENS}" if len(streams) > 1 else TOKENS


def _labels(streams: tuple[str, ...], shapes: _Shapes) -> dict[str, int]:
    """What the variable extents of one call are."""
    found = {BATCH: shapes[streams[0]][0], TOKENS: sum(shapes[name][1] for name in streams)}
    return found | {_tokens(name, streams): shapes[name][1] for name in streams}


def _condition(
    name: str, shapes: list[tuple[int, ...]], labels: list[dict[str, int]]
) -> tuple[str | int, ...]:
    axes: list[str | int] = []
    for place in range(len(shapes[0])):
        extents = [shape[place] for shape in shapes]
        known = [label for label in labels[0] if place == 0 or label != BATCH]
        if any(part in name for part in _PER_TOKEN):
            # a table has an axis of tokens, and others that may be as long
            known = [label for label in known if label not in axes]
        fitting = [k for k in known if all(own[k] == n for own, n in zip(labels, extents, strict=True))]
        if len(set(extents)) > 1:
            axes.append(fitting[0] if fitting else f"{name}.{place}")
        elif fitting and _plausible(name, place, len(shapes[0]), extents[0]):
            axes.append(fitting[0])
        else:
            axes.append(extents[0])
    return tuple(axes)


def _plausible(name: str, place: int, count: int, extent: int) -> bool:
    """Whether an extent that never varied is more than a coincidence with a variable one."""
    if place == 0:
        # tables of rotary embeddings begin with the tokens, or with an extent of 1 that broadcasts
        return extent > 1 or not any(part in name for part in _PER_TOKEN)
    return place < count - 1 or "mask" in name or "bias" in name
