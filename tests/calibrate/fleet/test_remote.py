"""Workers elsewhere, here at the other end of a line in this process that breaks when it is told to."""

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch
from tests.calibrate.closed_loop.world import STEPS, dit

from cachesmith.calibrate.closed_loop.axes import AXES, segments
from cachesmith.calibrate.closed_loop.descent import Point
from cachesmith.calibrate.closed_loop.equations import Equations
from cachesmith.calibrate.closed_loop.fit import SegmentFitter
from cachesmith.calibrate.closed_loop.lanes import Schedule, line_weights
from cachesmith.calibrate.closed_loop.polish import Polisher
from cachesmith.calibrate.closed_loop.walk import Start
from cachesmith.calibrate.fleet.groups import request_groups, shared_out
from cachesmith.calibrate.fleet.journal import Journal
from cachesmith.calibrate.fleet.processes import Desk
from cachesmith.calibrate.fleet.recipe import Recipe, print_of
from cachesmith.calibrate.fleet.remote import GoneError, Remote
from cachesmith.calibrate.fleet.shards import Shards
from cachesmith.calibrate.fleet.wire import Call, answered, from_bytes, to_bytes
from cachesmith.calibrate.memory.placement import Placement
from cachesmith.policies import CachesmithError, PolicyError
from cachesmith.sampling.requests import requests

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

from fleet import Shapes, equation_bytes, fit_bytes, gradient_bytes, walk_bytes

CHANNELS = 32
MASK = Schedule("CFFCFFFFFF")


LOADING = Lock()


@cache
def template() -> Any:
    return dit().pipe


def load(_: str) -> Any:
    """A copy: workers of one process share torch's random numbers, and others may be drawing some."""
    with LOADING:
        return deepcopy(template())


class Breaking:
    """A line that breaks once for each kind of call: when an answer of that kind is due for the n-th time.

    moved: each kind of call that was made, and bytes of message and answer.
    """

    def __init__(
        self, breaks: dict[str, int], asked: Counter[str], moved: list[tuple[str, int]], recipe: Recipe
    ):
        self.desk, self.breaks, self.asked, self.moved = Desk(recipe), breaks, asked, moved

    def ask(self, message: bytes) -> bytes:
        name = from_bytes(message).name
        self.asked[name] += 1
        reply = answered(self.desk, message)
        self.moved.append((name, len(message) + len(reply)))
        if self.asked[name] == self.breaks.get(name):
            raise GoneError("exit code -9")
        return reply

    def close(self) -> None: ...


@contextmanager
def fleet(
    folder: Path,
    breaks: dict[str, int],
    workers: int = 1,
    stamp: str | None = None,
    moved: list[tuple[str, int]] | None = None,
) -> Iterator[Shards]:
    """Workers, the first with a line that breaks; moved: see `Breaking`."""
    groups = request_groups(requests([{"class_labels": label} for label in range(4)], 4, 7), 2)
    stamp = stamp or print_of(load("cpu"))
    recipes = [
        Recipe(load, "cpu", STEPS, Placement(), {"guidance_scale": 1.5}, own, folder, stamp)
        for own in shared_out(groups, workers)
    ]
    lines = [
        partial(Breaking, broken, Counter[str](), [] if moved is None else moved, recipe)
        for broken, recipe in zip((breaks, {}), recipes, strict=False)
    ]
    shards = Shards(groups, [Remote("worker", line) for line in lines], torch.device("cpu"))
    yield shards
    shards.close()


def calibrated(shards: Shards) -> tuple[torch.Tensor, ...]:
    shards.references(lambda _: None)
    fit = SegmentFitter(shards, MASK, (CHANNELS,), turns=2)()
    rows = Polisher(shards, fit, size=2)(2)
    return fit.samples, *rows.values()


def test_whenever_a_worker_dies_nothing_is_lost(tmp_path: Path) -> None:
    with fleet(tmp_path, {}) as shards:
        whole = calibrated(shards)
    assert shards.repeated == 0
    # the third `compute` is due while another worker is led to where the one that died at `settle` was
    breaks = {"reference": 2, "go": 4, "compute": 3, "sums": 3, "settle": 1, "scores": 1, "gradients": 2}
    with warnings.catch_warnings(record=True) as told, fleet(tmp_path, breaks) as shards:
        warnings.simplefilter("always")
        parts = calibrated(shards)
    assert [str(each.message)[:38] for each in told] == ["worker died (exit code -9) and is repl"] * 7
    assert shards.repeated > 0
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


def test_a_call_that_kills_every_worker_is_given_up(tmp_path: Path) -> None:
    def connect() -> Any:
        return Breaking({"reference": 1}, Counter(), [], recipe)

    recipe = Recipe(load, "cpu", STEPS, Placement(), {}, {}, tmp_path, "")
    remote = Remote("worker 1", connect)
    with (
        pytest.warns(RuntimeWarning, match="replaced"),
        pytest.raises(CachesmithError, match="3 workers died"),
    ):
        remote(Call("reference", (0,)))


def test_another_pipeline_is_refused(tmp_path: Path) -> None:
    with (
        fleet(tmp_path, {}, stamp="another") as shards,
        pytest.raises(PolicyError, match="not the pipeline that is"),
    ):
        shards.references(lambda _: None)


def test_a_journal_leaves_out_what_came_to_nothing() -> None:
    """But for the first equations of a walk, which choose the combinations of latents."""
    journal = Journal()
    for number, name in enumerate(["reference", "begin", "compute", "go", "equations", "sums", "go", "go"]):
        journal.add(Call(name, (number,)))
    assert [call.arguments[0] for call in journal.calls] == [0, 1, 2, 4, 7]
    for name in ("equations", "sums", "settle", "compute"):
        journal.add(Call(name))
    expected = "reference begin compute equations go settle compute"
    assert [call.name for call in journal.calls] == expected.split()
    journal.add(Call("equations"))
    assert journal.calls[-1].name == "equations"
    journal.add(Call("begin"))
    assert [call.name for call in journal.calls] == ["reference", "begin"]


def test_what_is_sent_arrives() -> None:
    things: dict[str, Any] = {
        "bf16": torch.randn(3, 2).bfloat16(),
        "none": torch.zeros(0, 4),
        "one": torch.tensor(2.0),
        "n": 3,
    }
    again = from_bytes(to_bytes(things))
    for name in ("bf16", "none", "one"):
        assert again[name].dtype == things[name].dtype and torch.equal(again[name], things[name])
    equations = Equations(3, MASK, 4, torch.device("cpu"))
    rows = torch.randn(5, equations.gram.shape[1])
    equations.gram[1] = rows.T @ rows
    equations.gram[1] = equations.gram[1].tril() + equations.gram[1].tril(-1).T
    equations.right[1], equations.count, equations.tokens = rows[0], 7, 2
    data = to_bytes(equations)
    found = Equations(3, MASK, 4, torch.device("cpu")).merge(from_bytes(data))
    assert torch.equal(found.gram, equations.gram) and torch.equal(found.right, equations.right)
    assert (found.count, found.tokens) == (7, 2)
    assert len(data) < 4 * (AXES * 4) * (AXES * 4 + 1) / 2 + 4 * 4 * AXES * 4 + 1000


def test_errors_arrive_as_what_they_are() -> None:
    class LocalError(Exception):
        pass

    def failing(call: Call) -> None:
        raise PolicyError("no") if call.name == "own" else LocalError("deep")

    assert isinstance(from_bytes(answered(failing, to_bytes(Call("own"))))[1], PolicyError)
    other = from_bytes(answered(failing, to_bytes(Call("other"))))[1]
    assert type(other) is RuntimeError and str(other) == "LocalError: deep"


def test_bytes_are_those_that_were_told(tmp_path: Path) -> None:
    """But for the envelopes, of less than a kilobyte each."""
    messages: list[tuple[str, int]] = []
    with fleet(tmp_path, {}, workers=2, moved=messages) as shards:
        shards.references(lambda _: None)
        folds, theta = torch.arange(4) % 2, torch.zeros(2, 1, AXES, CHANNELS)
        shards.begin(Start(MASK, (CHANNELS,), 2), folds)
        first = segments(MASK.mask)[0]
        shards.compute(first.start, lambda _: None)
        shards.go(first, theta)
        shards.equations(first, theta, torch.ones(4), 1.0)
        rows = line_weights(MASK, CHANNELS, torch.device("cpu"))
        shards.gradients(range(4), Point(MASK, (first,), rows, (theta[0],)), lambda _: None)
    moved = Counter[str]()
    for name, size in messages:
        moved[name] += size
    shapes = Shapes(MASK, CHANNELS, samples=4, folds=2, workers=2, away=2)
    assert 0 < moved["go"] - walk_bytes(shapes) < 4000
    assert 0 < moved["equations"] + moved["sums"] - equation_bytes(shapes) < 8000
    assert 0 < moved["gradients"] - gradient_bytes(shapes, segments=1) < 4000
    assert fit_bytes(shapes, 3, 2, 5) == 3 * (2 * equation_bytes(shapes) + 5 * walk_bytes(shapes))
