"""The units that an option of a method names."""

from cachesmith.policies import Modules, PolicyError, Segments, Stack, Units

GRANULARITIES = ("stack", "segment", "module")


def granularity(name: str, blocks: int) -> Units:
    """Return the units that an option names: `stack`, two segments of nearly equal length, or `module`."""
    match name:
        case "stack":
            return Stack()
        case "segment":
            return _segments(blocks, 2)
        case "module":
            return Modules()
        case _:
            raise PolicyError(f"there are no units {name!r}; choose from {', '.join(GRANULARITIES)}")


def _segments(blocks: int, count: int) -> Segments:
    """`count` segments of nearly equal length."""
    return Segments(starts=tuple(sorted({round(i * blocks / count) for i in range(count)})))
