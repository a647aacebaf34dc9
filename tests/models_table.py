"""The table of docs/models.md: `python -m tests.models_table` prints it, and a test holds the file against it."""

from cachesmith.commands.adapters import units
from cachesmith.runtime import ADAPTERS
from cachesmith.zoo import NO_ROW, VARIANTS, transformer_classes
from tests.export.test_zoo import NOT_RUN, REFUSED

HEAD = """# Models

Every transformer class that diffusers has, and what can be done with it. Made by
`python -m tests.models_table > docs/models.md` from the rows (`runtime/models/rows.json`) and from the tests that
export tiny random models of all classes; nothing here was measured on a real model.

- **stack**, **segments**, **modules**: the units that can be cached. Of every class in the table, on a tiny model:
  computing everything is bit-identical, forecasts take the place of what they replace, and no step falls back.
- **ONNX**: whether the graphs of its lists of blocks agree with torch in ONNX Runtime, within 1e-4 in float32 at every
  recorded step. *one block*: the graph of a block does; the transformer works between blocks, so that it is refused
  as an engine.
- **not needed**: lists that are provably without effect on a step that forecasts the stack.

A class that is not here is looked at in its first call under a policy, and refused by name with the reason if its
blocks cannot be proven.

| class | blocks | stack | segments | modules | ONNX | not needed |
| --- | --- | :-: | :-: | :-: | --- | --- |
"""


def render() -> str:
    """Return the page."""
    by_call = {owner for owner, _ in VARIANTS.values()}
    return HEAD + "".join(_line(name, by_call) for name in sorted(transformer_classes()))


def _line(name: str, by_call: set[str]) -> str:
    if name in NO_ROW:
        return f"| {name} | refused: {NO_ROW[name]} | | | | | |\n"
    if name in by_call:
        return f"| {name} | as its first call tells | yes | yes | | {_onnx(name, False)} | as its first call tells |\n"
    adapter = ADAPTERS[name]
    able = units(adapter)
    lists = ", ".join(f"`{entry.path}`" for entry in adapter.lists)
    marks = " | ".join("yes" if kind in able else "" for kind in ("stack", "segment", "module"))
    idle = ", ".join(f"`{e.path}`" + (f" but the last {e.kept}" if e.kept else "") for e in adapter.idle)
    return f"| {name} | {lists} | {marks} | {_onnx(name, adapter.works or adapter.skips)} | {idle} |\n"


def _onnx(name: str, alone: bool) -> str:
    if name in REFUSED:
        return f"no: {REFUSED[name]}"
    return "not run" if name in NOT_RUN else "one block" if alone else "yes"


if __name__ == "__main__":
    print(render(), end="")
