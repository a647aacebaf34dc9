"""The table of docs/models.md: `python -m tests.models_table` prints it, and a test holds the file against it."""

from cachesmith.commands.adapters import units
from cachesmith.runtime import ADAPTERS
from cachesmith.zoo import NO_ROW, VARIANTS, transformer_classes
from tests.export.test_zoo import REFUSED
from tests.export.true_size import TRUE_SIZE
from tests.pipelines.test_calibrated import found

HEAD = """# Models

Every transformer class that diffusers has, and what can be done with it. Made by
`python -m tests.models_table > docs/models.md` from the rows (`runtime/models/rows.json`), from the tests that
export tiny random models of all classes, and from those that calibrate tiny random pipelines; nothing here was measured
on a real model.

- **stack**, **segments**, **modules**: the units that can be cached. Of every class in the table, on a tiny model:
  computing everything is bit-identical, forecasts take the place of what they replace, and no step falls back.
- **calibrate**: the pipelines that were calibrated end to end: `calibrate`, the policy saved, loaded and applied, half
  of the steps forecast and none fallen back. The table below this one has every pipeline that was tried; *not tried*:
  no tiny pipeline of the class was built, nothing is known against it. A class without a row is looked at in the first
  call of a run that is left at once.
- **ONNX**: whether the graphs of its lists of blocks agree with torch in ONNX Runtime, within 1e-4 in float32 at every
  recorded step; those of some take the number of tokens that was recorded alone. *one block*: the graph of a block
  does; the transformer works between blocks, so that it is refused as an engine.
- **RTX**: TensorRT for RTX built engines of blocks of the published size (`tests/export/test_true_size.py`, slow).
- **not needed**: lists that are provably without effect on a step that forecasts the stack.

A class that is not here is looked at in its first call under a policy, and refused by name with the reason if its
blocks cannot be proven.

| class | blocks | stack | segments | modules | calibrate | ONNX | RTX | not needed |
| --- | --- | :-: | :-: | :-: | --- | --- | :-: | --- |
"""

NO_PIPELINE = {
    **dict.fromkeys(
        ("DreamLiteTransformer2DModel", "Transformer2DModel", "TransformerTemporalModel"), "a part of U-Nets"
    ),
    **dict.fromkeys(
        (
            "Flux3Transformer2DModel",
            "MiniMaxH3Transformer3DModel",
            "MiniMaxMusic3Transformer1DModel",
            "WanAnimate2Transformer3DModel",
        ),
        "modular pipelines only",
    ),
    "OmniGenTransformer2DModel": "not tried: needs torchvision",
    "PriorTransformer": "makes embeddings: its pipelines call it `prior`",
    "RFD4ProteinaTransformer": "makes proteins",
    "SanaWMLTX2RefinerTransformer3DModel": "refines what another pipeline made",
}
"""Why there is no tiny pipeline of a class."""

PIPELINES = """
## Pipelines

What `calibrate` was tried on: tiny models with random weights, 8 steps, the smallest budget
(`python -m tests.pipelines.sweep`, and `tests/pipelines/test_calibrated.py`, slow). Requests bring their own
embeddings, and pictures where the pipeline takes some. {done} of {all} work.

| pipeline | transformer | calibrate |
| --- | --- | --- |
"""


def render() -> str:
    """Return the page."""
    by_call = {owner for owner, _ in VARIANTS.values()}
    lines = [_line(name, by_call) for name in sorted(transformer_classes())]
    tried = found()
    done = sum(entry["calibrate"] == "yes" for entry in tried.values())
    rows = [f"| {name} | {e['transformer']} | {_plain(e['calibrate'])} |\n" for name, e in tried.items()]
    return HEAD + "".join(lines) + PIPELINES.format(done=done, all=len(tried)) + "".join(rows)


def _plain(why: str) -> str:
    return why if why == "yes" else f"no: {why.replace('|', ' ')}"


def _line(name: str, by_call: set[str]) -> str:
    if name in NO_ROW:
        return f"| {name} | refused: {NO_ROW[name]} | | | | | | | |\n"
    rest = f"{_calibrated(name)} | {{onnx}} | {'yes' if name in TRUE_SIZE else ''}"
    if name in by_call:
        told = "as its first call tells"
        return f"| {name} | {told} | yes | yes | | {rest.format(onnx=_onnx(name, False))} | {told} |\n"
    adapter = ADAPTERS[name]
    able = units(adapter)
    lists = ", ".join(f"`{entry.path}`" for entry in adapter.lists)
    marks = " | ".join("yes" if kind in able else "" for kind in ("stack", "segment", "module"))
    idle = ", ".join(f"`{e.path}`" + (f" but the last {e.kept}" if e.kept else "") for e in adapter.idle)
    onnx = _onnx(name, adapter.works or adapter.skips)
    return f"| {name} | {lists} | {marks} | {rest.format(onnx=onnx)} | {idle} |\n"


def _calibrated(name: str) -> str:
    tried = {
        p.replace("Pipeline", "", 1): e["calibrate"] for p, e in found().items() if e["transformer"] == name
    }
    return ", ".join(pipeline for pipeline, result in tried.items() if result == "yes") or NO_PIPELINE.get(
        name, "not tried"
    )


def _onnx(name: str, alone: bool) -> str:
    if name in REFUSED:
        return f"no: {REFUSED[name]}"
    return "one block" if alone else "yes"


if __name__ == "__main__":
    print(render(), end="")
