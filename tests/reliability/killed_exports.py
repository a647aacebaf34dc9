"""Exports that end early: `python -m tests.reliability.killed_exports COUNT SEED [real]` prints one line of JSON.

Every export runs in a process of its own, forked from this one, which has imported all that takes long and runs none.
Without `real`, torch traces every graph once and later exports are given its files, so that many moments can be tried.
"""

import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

from tests.reliability.ended_early import ENDINGS, begin, end, ended_early
from tests.tiny import policy, tiny_dit

from cachesmith.export import ExportConfig, bundling, export_bundle, to_onnx
from cachesmith.policies import EngineError, Segments
from cachesmith.policies.bundle.manifest import MANIFEST, bundle_id
from cachesmith.runtime import open_bundle

POLICY = policy(Segments(starts=(0, 1, 2)))
CONFIG = ExportConfig(requests=({"class_labels": [0]},), steps=3)
GRAPHS = 3


def export(tell: Callable[..., None], folder: Path, weights: int) -> None:
    """Open what is there, then export, and tell what happens."""
    try:
        if (folder / MANIFEST).exists():
            open_bundle(folder)
        done = export_bundle(
            tiny_dit(weights), POLICY, folder, CONFIG, lambda phase, *_: tell("phase", phase)
        )
        tell("done", bundle_id(done.manifest), done.graphs)
    except EngineError as error:
        tell("refused", str(error))
    except KeyboardInterrupt:
        tell("interrupted")
    except BaseException as error:
        tell("escaped", repr(error)[:300])


def remember(cache: Path) -> None:
    """Have exports take the graphs that were traced before from `cache`, and keep new ones there."""
    trace = to_onnx.write_onnx

    def write(members: Any, face: Any, samples: Any, path: Path, opset: int) -> Any:
        names = (path.name, f"{path.name}.data")
        if not all((cache / name).exists() for name in names):
            assert trace(members, face, samples, path, opset) == face
            for name in names:
                shutil.copy(path.parent / name, cache / name)
        for name in names:
            (path.parent / name).write_bytes((cache / name).read_bytes())
        return face

    setattr(bundling, "write_onnx", write)  # noqa: B010


def started(told: Iterable[list[Any]]) -> int:
    """How many graphs were begun; all but the last of them were finished."""
    return sum(words[0] == "phase" and words[1].startswith("exporting") for words in told)


def campaign(count: int, seed: int, real: bool) -> dict[str, Any]:
    """End `count` exports at random moments, resume each, and return counts of what came of them."""
    base, draw = Path(tempfile.mkdtemp()), Random(seed)
    if not real:
        (base / "cache").mkdir()
        remember(base / "cache")
        end(*begin(export, base / "first", 0))
    begun = time.monotonic()
    ((_, right, _),) = [words for words in end(*begin(export, base / "whole", 0)) if words[0] == "done"]
    whole = time.monotonic() - begun
    end(*begin(export, base / "older", 1))
    tally: Counter[str] = Counter()
    for number in range(count):
        ending, folder = ENDINGS[number % len(ENDINGS)], base / f"{number}"
        if number // len(ENDINGS) % 2:
            shutil.copytree(base / "older", folder)
        told = ended_early(export, ending, draw.uniform(0, whole), folder, 0)
        again = end(*begin(export, folder, 0))
        tally[f"{ending}: {told[-1][0] if told else 'nothing told'}"] += 1
        wrong = [words for words in (*told, *again) if words[0] == "escaped"]
        assert not wrong and again[-1][0] == "done", (number, ending, told[-1:], again[-1:])
        assert again[-1][1] == right, (number, ending, "another bundle")
        lost = again[-1][2] - (GRAPHS - max(0, started(told) - 1))
        assert lost <= 0, (number, ending, f"{lost} finished graphs were lost")
        tally["graphs made again"] += again[-1][2] - (GRAPHS - started(told))
        shutil.rmtree(folder)
    shutil.rmtree(base)
    return {"counts": tally, "seconds of a whole export": round(whole, 1)}


if __name__ == "__main__":
    print(json.dumps(campaign(int(sys.argv[1]), int(sys.argv[2]), "real" in sys.argv)))
