"""Mutated bundles: each is refused with one `EngineError`, or computes what the untouched one computes.

The author of `hostile_graph` knows the hashes: what is not refused is what that graph computes, and there only other
exceptions, crashes and hangs count. `python -m tests.reliability.test_bundles COUNT SEEDS` prints the figures of
docs/reliability.md.
"""

import faulthandler
import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from random import Random
from time import perf_counter, process_time
from typing import Any

import onnx
import pytest
import torch
from tests.reliability.mutate import ODD, damaged, edited
from tests.shipped import DIT_CONFIG, Shipped, dit_policy
from tests.tiny import tiny_dit

from cachesmith.export import export_bundle
from cachesmith.policies import EngineError
from cachesmith.policies.bundle.files import describe_file
from cachesmith.policies.bundle.manifest import MANIFEST
from cachesmith.runtime import open_bundle, resolve_units
from cachesmith.runtime.engines.drop_weights import present_key
from cachesmith.runtime.models.units import network_units
from cachesmith.runtime.stats import Stats

SECONDS = 2.0
HANG = 20
"""Seconds after which a case counts as one that hangs."""


class Bench:
    """A copy of a bundle that is mutated again and again, and the model it is opened for."""

    def __init__(self, base: Path, work: Path):
        self.base, self.folder = base, work / "bundle"
        shutil.copytree(base, self.folder)
        self.manifest = json.loads((base / MANIFEST).read_text())
        self.files = {path.name: path.read_bytes() for path in base.iterdir()}
        self.pipe = tiny_dit()
        self.units = network_units(resolve_units(self.pipe.transformer, dit_policy().profile().units))
        self.present = present_key(self.pipe.transformer, self.pipe)
        torch.manual_seed(0)
        whole = torch.ones(2, dtype=torch.int64)
        self.given: dict[str, Any] = {
            "timestep": whole,
            "class_labels": whole,
            "hidden_states": torch.rand(2, 16, 32),
        }
        self.right = self.computed()

    def computed(self) -> list[torch.Tensor]:
        """Open and bind the bundle, and compute every unit."""
        bound = open_bundle(self.folder).bind(self.pipe.transformer, self.present, self.units, Stats())
        outputs = [bound.compute(unit, self.given) for unit in self.units]
        return [tensor for output in outputs if output is not None for tensor in output]

    def outcome(self) -> str:
        """What comes of the folder as it is."""
        try:
            found = self.computed()
        except EngineError as error:
            assert str(error).isprintable() and len(str(error)) > 20, error
            return "refused"
        same = len(found) == len(self.right) and all(map(torch.equal, found, self.right))
        return "right" if same else "other"

    def restore(self) -> None:
        """Put every file back."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.base, self.folder)


def manifest_fields(bench: Bench, draw: Random) -> None:
    text = edited(bench.manifest, draw)
    (bench.folder / MANIFEST).write_bytes(text.encode(errors="surrogatepass"))


def manifest_bytes(bench: Bench, draw: Random) -> None:
    (bench.folder / MANIFEST).write_bytes(damaged(bench.files[MANIFEST], draw))


def file_bytes(bench: Bench, draw: Random) -> None:
    name = draw.choice([name for name in sorted(bench.files) if name != MANIFEST])
    (bench.folder / name).write_bytes(damaged(bench.files[name], draw))


def hostile_graph(bench: Bench, draw: Random) -> None:
    """Another graph, or other weights, whose hash the manifest has."""
    raw = json.loads(json.dumps(bench.manifest))
    segment = draw.choice(raw["segments"])
    kind = draw.choice(["onnx", "onnx", "onnx", "data"])
    name = segment[kind]["name"]
    data = bench.files[name]
    changed = damaged(data, draw) if kind == "data" or draw.random() < 0.3 else rewritten(data, draw)
    (bench.folder / name).write_bytes(changed)
    segment[kind] = describe_file(bench.folder / name).model_dump()
    (bench.folder / MANIFEST).write_text(json.dumps(raw))


def rewritten(data: bytes, draw: Random) -> bytes:
    """A graph of which nodes, attributes, shapes and places of weights are others."""
    model = onnx.ModelProto.FromString(data)
    graph, number = model.graph, draw.choice([-1, 0, 1, 2, 7, 2**31, 2**62])
    node, tensor = draw.choice(graph.node), draw.choice(graph.initializer)
    match draw.randrange(8):
        case 0:
            node.op_type = draw.choice(
                ["Identity", "Add", "Reshape", "Expand", "Gather", "Loop", "NoSuch", "Tile", ""]
            )
        case 1:
            del node.input[:]
        case 2:
            node.input.append(draw.choice([*node.input, graph.output[0].name, "nowhere"]))
        case 3:
            graph.node.remove(node)
        case 4 if node.attribute:
            attribute = draw.choice(node.attribute)
            attribute.i, attribute.f = number, float(number)
            attribute.ints.append(number)
        case 5 if tensor.dims:
            tensor.dims[draw.randrange(len(tensor.dims))] = number
        case 6 if tensor.external_data:
            draw.choice(tensor.external_data).value = str(
                draw.choice([number, "../x", "/etc/passwd", *map(str, ODD[:8])])
            )
        case _:
            value = draw.choice([*graph.input, *graph.output]).type.tensor_type
            value.elem_type = draw.randrange(24)
    return bytes(model.SerializeToString())


KINDS = (manifest_fields, manifest_bytes, manifest_fields, file_bytes, manifest_fields, hostile_graph)
HONEST = {manifest_bytes, file_bytes, manifest_fields}


def campaign(bench: Bench, count: int, seed: int) -> tuple[Counter[str], float]:
    """Mutate the bundle `count` times; return what came of it, and the most CPU seconds one took."""
    tally: Counter[str] = Counter()
    slowest = 0.0
    for number in range(count):
        draw = Random(seed * 1_000_000_007 + number)
        kind = KINDS[number % len(KINDS)]
        kind(bench, draw)
        faulthandler.dump_traceback_later(HANG, exit=True)  # no exception reaches into a runtime that hangs
        begun = process_time()
        said = bench.outcome()
        slowest = max(slowest, process_time() - begun)
        faulthandler.cancel_dump_traceback_later()
        assert said != "other" or kind not in HONEST, (kind.__name__, number, seed)
        tally[f"{kind.__name__}: {said}"] += 1
        bench.restore()
    return tally, slowest


@pytest.mark.parametrize("count", [240, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutated_bundles(dit_bundle: Shipped, tmp_path: Path, count: int) -> None:
    tally, slowest = campaign(Bench(dit_bundle.folder, tmp_path), count, seed=count)
    assert tally.total() == count and slowest < SECONDS
    assert tally["file_bytes: refused"] and tally["hostile_graph: refused"]


if __name__ == "__main__":
    begun, base = perf_counter(), Path(tempfile.mkdtemp())
    export_bundle(tiny_dit(), dit_policy(), base / "base", DIT_CONFIG)
    bench, total = Bench(base / "base", base), Counter[str]()
    for seed in range(int(sys.argv[2])):
        tally, slowest = campaign(bench, int(sys.argv[1]), seed)
        total += tally
        print(
            total.total(),
            dict(total),
            f"slowest {slowest:.3f} s, {perf_counter() - begun:.0f} s so far",
            flush=True,
        )
    shutil.rmtree(base)
