"""Whether a transformer is what its adapter describes: a mistake in a row is told, not met in the middle of a run."""

import inspect

from torch import nn

from cachesmith.policies import PolicyError
from cachesmith.runtime.models.adapter import Adapter, BlockList


def check_described(transformer: nn.Module, adapter: Adapter) -> None:
    """Raise `PolicyError` where the transformer lacks what the adapter names."""
    wrong = _wrong(transformer, adapter)
    if wrong is not None:
        raise PolicyError(
            f"the adapter of {type(transformer).__name__} does not fit it: {wrong}; write it by the class's own "
            "names and pass it to cachesmith.runtime.register"
        )


def _wrong(transformer: nn.Module, adapter: Adapter) -> str | None:
    last = adapter.lists[-1]
    if not set(last.streams) & set(adapter.live):
        return f"none of {last.path}'s streams {_words(last.streams)} is among the `live` ones {_words(adapter.live)}"
    if not _takes(transformer, adapter.timestep):
        return f"it takes no argument {adapter.timestep}"
    for entry in adapter.lists:
        blocks = _submodule(transformer, entry.path)
        if blocks is None:
            return f"it has no {entry.path}"
        for index, block in enumerate(blocks.children()):
            missing = _missing(block, entry)
            if missing is not None:
                return f"{entry.path}.{index} has no {missing}"
    return None


def _missing(block: nn.Module, entry: BlockList) -> str | None:
    """The first submodule that a span names and the block lacks; spans that blocks may lack aside."""
    paths = (path for span in entry.modules if not span.optional for path, _ in span.members)
    return next((path for path in paths if _submodule(block, path) is None), None)


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _takes(transformer: nn.Module, name: str) -> bool:
    parameters = inspect.signature(transformer.forward).parameters
    wrapped = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())
    return wrapped or name in parameters


def _words(names: tuple[str, ...]) -> str:
    return ", ".join(names)
