"""Calibrations that end early: `python -m tests.reliability.killed_calibrations COUNT SEED` prints one line of JSON.

Every calibration runs in a process of its own, forked from this one, which has imported all that takes long and runs
none. It tells every call of the transformer, and that its work folder has changed since the last one. What an ended
calibration and its resumption make more calls than an undisturbed one was lost; a unit of work is what lies between two
changes of the folder.
"""

import json
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from tests.calibrate.small import LABELS, pipeline, settings
from tests.reliability.ended_early import ENDINGS, begin, end, ended_early

from cachesmith.calibrate import calibrate
from cachesmith.policies import PolicyError, load

SMALL: dict[str, Any] = {"steps": 8, "batch": 1, "fitting": 2, "heldout": 1, "budget": 12.0}


def calibration(tell: Callable[..., None], folder: Path) -> None:
    """Calibrate in `folder`, and tell what happens."""
    pipe = pipeline()
    kept: list[Any] = [None]

    def called(*_: Any) -> None:
        before, kept[0] = kept[0], saved(folder / "work")
        tell("call", kept[0] != before)

    pipe.transformer.register_forward_pre_hook(called)
    try:
        tell("begun")
        made = settings(folder / "work", out=folder / "x.policy.safetensors", **SMALL)
        calibrate(pipe, LABELS, made)
        tell("done", load(folder / "x.policy.safetensors").id)
    except (PolicyError, OSError) as error:
        tell("refused", str(error))
    except KeyboardInterrupt:
        tell("interrupted")
    except BaseException as error:
        tell("escaped", repr(error)[:300])


def saved(work: Path) -> Any:
    """What tells one state of the work folder from another."""
    return sorted((str(path), path.stat().st_mtime_ns) for path in work.rglob("*") if path.is_file())


def calls(told: list[list[Any]]) -> int:
    """How often the transformer was called."""
    return sum(words[0] == "call" for words in told)


def largest_unit(told: list[list[Any]]) -> int:
    """The most calls between two changes of the work folder."""
    changes = [index for index, words in enumerate(told) if words[0] != "call" or words[1]]
    return max(after - before for before, after in pairwise(changes))


def campaign(count: int, seed: int) -> dict[str, Any]:
    """End `count` calibrations at random moments, resume each, and return counts of what came of them."""
    base, draw = Path(tempfile.mkdtemp()), Random(seed)
    begun = time.monotonic()
    undisturbed = end(*begin(calibration, base / "whole"))
    whole = time.monotonic() - begun
    assert undisturbed[-1][0] == "done", undisturbed[-1]
    tally: Counter[str] = Counter()
    lost: list[int] = []
    for number in range(count):
        ending, folder = ENDINGS[number % len(ENDINGS)], base / f"{number}"
        told = ended_early(calibration, ending, draw.uniform(0, whole), folder)
        again = end(*begin(calibration, folder))
        tally[f"{ending}: {told[-1][0] if told else 'nothing told'}"] += 1
        assert not [w for w in (*told, *again) if w[0] == "escaped"], (number, ending, told[-1:], again[-1:])
        assert again[-1] == undisturbed[-1], (number, ending, again[-1], undisturbed[-1])
        lost.append(calls(told) + calls(again) - calls(undisturbed))
        print(number, ending, told[-1:], "calls lost:", lost[-1], file=sys.stderr, flush=True)
        shutil.rmtree(folder)
    shutil.rmtree(base)
    unit = largest_unit(undisturbed)
    return {"counts": tally, "calls": calls(undisturbed), "largest unit": unit, "lost": lost}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(campaign(int(sys.argv[1]), int(sys.argv[2]))))
