"""Processes of this machine: the schedule and, but for rounding, the weights of one, also where a worker is killed."""

import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.calibrate.small import LABELS, pipeline, settings

from cachesmith.calibrate import calibrate
from cachesmith.calibrate.closed_loop import fit
from cachesmith.calibrate.fleet.processes import Process
from cachesmith.calibrate.fleet.recipe import Recipe
from cachesmith.calibrate.fleet.shards import Shards
from cachesmith.policies import Policy, PolicyError


def load(_: str) -> Any:
    return pipeline()


def run(work: Path, **changes: Any) -> Any:
    quick = {"steps": 8, "speedups": (4.0,), "budget": 12.0, "fitting": 4, "heldout": 1}
    return calibrate(pipeline(), LABELS, settings(work, **(quick | changes)), load)


def noted(monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    """Processes that are started."""
    made: list[Process] = []
    start: Callable[..., None] = Process.__init__

    def starting(self: Process, recipe: Recipe) -> None:
        start(self, recipe)
        made.append(self)

    monkeypatch.setattr(Process, "__init__", starting)
    return made


def weights_apart(one: Policy, other: Policy) -> float:
    """Of policies with the same schedules: how far weights are apart, of their size."""
    gates = [{n: p.gate for n, p in policy.document.profiles.items()} for policy in (one, other)]
    assert gates[0] == gates[1] and {*one.arrays} == {*other.arrays}
    pairs = [(one.arrays[name].astype(float), other.arrays[name].astype(float)) for name in one.arrays]
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in pairs)


@pytest.mark.slow
def test_a_killed_process_is_replaced_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"budget": 24.0, "batch": 2}
    alone = run(tmp_path / "alone", **changes)
    made = noted(monkeypatch)
    real, segments = fit.SegmentFitter._segment, [0]

    def killing(self: Any, segment: Any) -> None:
        segments[0] += 1
        if segments[0] in (2, 4):
            pid = made[-1].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        real(self, segment)

    monkeypatch.setattr(fit.SegmentFitter, "_segment", killing)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        several = run(tmp_path / "several", workers=2, **changes)
    assert sum("worker 1 died" in str(each.message) for each in told) == 2
    # rounding of sums in another order, as many times larger as the equations are badly conditioned: 2e-5 was seen
    assert weights_apart(alone.policy, several.policy) < 1e-4
    spent, lost = several.ledger.phases, several.ledger.phases["lost with workers"]
    for name, phase in alone.ledger.phases.items():
        assert (spent[name].forwards, spent[name].backwards) == (phase.forwards, phase.backwards)
    assert spent.keys() == alone.ledger.phases.keys() | {"lost with workers"} and lost.forwards > 0


@pytest.mark.slow
def test_ctrl_c_ends_all_workers_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = noted(monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(Shards, "begin", interrupted)
        run(tmp_path, workers=2)
    assert not made[0]._process.is_alive()
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("references-*/*.pt")}
    assert len(kept) == 4
    run(tmp_path)
    assert kept == {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("references-*/*.pt")}


def test_workers_need_to_know_how_to_load(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="give `calibrate` a function"):
        calibrate(pipeline(), LABELS, settings(tmp_path, workers=2))
