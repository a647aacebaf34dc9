"""What an ONNX graph would have a runtime do, before one is given it: read from the bytes, and onnx is not imported."""

from collections.abc import Iterator

from cachesmith.policies.errors import EngineError

FIELDS = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""Field numbers of `onnx.proto` by message: those on the way to a tensor's `external_data`."""
REFUSED_FIELDS = {"model": {20, 25}, "attribute": {6, 11}}
"""Training, functions, and graphs inside nodes: no export has them, and a `Loop` may never end."""
MOST_FIELDS = 500_000
"""Fields that are looked at, in half a second; a graph of 60 blocks has some 100,000."""

VARINT, BYTES, FIXED = 0, 2, {1: 8, 5: 4}
LARGEST_TAG = 2**32 - 1


def locations(model: bytes) -> set[str]:
    """Return every file that tensors of a serialised ONNX model point to.

    Raises `EngineError` if it is no model, or if it holds graphs within its graph.
    """
    try:
        return set(_locations(memoryview(model), "model", iter(range(MOST_FIELDS))))
    except (IndexError, ValueError) as error:
        raise EngineError(f"the ONNX graph cannot be read: {error or 'it breaks off'}") from None


def _locations(message: memoryview, kind: str, budget: Iterator[int]) -> Iterator[str]:
    if kind == "entry":
        pair = {number: bytes(value) for number, value in _fields(message, budget)}
        if pair.get(1) == b"location":
            yield pair.get(2, b"").decode()
        return
    inner, refused = FIELDS[kind], REFUSED_FIELDS.get(kind, ())
    for number, value in _fields(message, budget):
        if number in refused:
            raise ValueError(
                "it holds loops, branches or functions, which may never end and which no export makes"
            )
        if number in inner:
            yield from _locations(value, inner[number], budget)


def _fields(message: memoryview, budget: Iterator[int]) -> Iterator[tuple[int, memoryview]]:
    """Number and content of every field that holds bytes; runtimes skip a field whose wire type is not its own."""
    at = 0
    while at < len(message):
        if next(budget, None) is None:
            raise ValueError(f"it has more than {MOST_FIELDS:,} fields")
        tag, at = _varint(message, at)
        # a runtime cuts a longer tag to 32 bits, and then sees another field than the one named here
        if tag > LARGEST_TAG:
            raise ValueError(f"the tag {tag} is beyond {LARGEST_TAG}")
        size, at = _size(message, at, tag & 7)
        if at + size > len(message):
            raise ValueError("it breaks off")
        if tag & 7 == BYTES:
            yield tag >> 3, message[at : at + size]
        at += size


def _size(message: memoryview, at: int, wire: int) -> tuple[int, int]:
    """How many bytes a field's content has, and where it begins."""
    if wire == VARINT:
        return 0, _varint(message, at)[1]
    if wire == BYTES:
        return _varint(message, at)
    if wire not in FIXED:
        raise ValueError(f"wire type {wire} is unknown")
    return FIXED[wire], at


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        value |= (message[at + place] & 0x7F) << 7 * place
        if message[at + place] < 0x80:
            return value, at + place + 1
    raise ValueError("a number has more than 10 bytes")
