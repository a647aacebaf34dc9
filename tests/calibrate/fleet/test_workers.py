"""Processes of this machine and actors of a local Ray: the schedule and, but for rounding, the weights of one process,
also where a worker is killed."""

import importlib
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.calibrate.small import LABELS, pipeline, settings

from cachesmith.calibrate import calibrate
from cachesmith.calibrate.closed_loop import fit
from cachesmith.calibrate.fleet.processes import Process
from cachesmith.calibrate.fleet.recipe import Recipe
from cachesmith.calibrate.fleet.remote import GoneError
from cachesmith.calibrate.fleet.shards import Shards
from cachesmith.policies import CachesmithError, Policy, PolicyError

ray_is_noisy = pytest.mark.filterwarnings("ignore")


def ray_cluster() -> Any:
    return importlib.import_module("cachesmith.calibrate.fleet.ray_cluster")


def local_ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ray, whose workers do not stand behind the tests of other processes."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    return pytest.importorskip("ray")


def load(_: str) -> Any:
    return pipeline()


def run(work: Path, **changes: Any) -> Any:
    quick = {"steps": 8, "speedups": (4.0,), "budget": 12.0, "fitting": 4, "heldout": 1}
    return calibrate(pipeline(), LABELS, settings(work, **(quick | changes)), load)


def noted(monkeypatch: pytest.MonkeyPatch, kind: Any) -> list[Any]:
    """Lines of this kind that are started."""
    made: list[Any] = []
    start: Callable[..., None] = kind.__init__

    def starting(self: Any, recipe: Recipe) -> None:
        start(self, recipe)
        made.append(self)

    monkeypatch.setattr(kind, "__init__", starting)
    return made


def killed_at(monkeypatch: pytest.MonkeyPatch, segments: set[int], kill: Callable[[], None]) -> None:
    """Call `kill` before these segments are fitted, counted from 1."""
    real, count = fit.SegmentFitter._segment, [0]

    def killing(self: Any, segment: Any) -> None:
        count[0] += 1
        if count[0] in segments:
            kill()
        real(self, segment)

    monkeypatch.setattr(fit.SegmentFitter, "_segment", killing)


def weights_apart(one: Policy, other: Policy) -> float:
    """Of policies with the same schedules: how far weights are apart, of their size."""
    gates = [{n: p.gate for n, p in policy.document.profiles.items()} for policy in (one, other)]
    assert gates[0] == gates[1] and {*one.arrays} == {*other.arrays}
    pairs = [(one.arrays[name].astype(float), other.arrays[name].astype(float)) for name in one.arrays]
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in pairs)


def kill_process(made: list[Process]) -> None:
    pid = made[-1].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@ray_is_noisy
@pytest.mark.parametrize("ray", [None, "local"])
def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray: str | None
) -> None:
    changes: dict[str, Any] = {"budget": 24.0, "batch": 2}
    alone = run(tmp_path / "alone", **changes)
    if ray is None:
        made = noted(monkeypatch, Process)
        killed_at(monkeypatch, {2, 4}, lambda: kill_process(made))
    else:
        cluster = local_ray(monkeypatch)
        made = noted(monkeypatch, ray_cluster().Actor)
        killed_at(monkeypatch, {2, 4}, lambda: cluster.kill(made[-1]._actor))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        several = run(tmp_path / "several", workers=2, ray=ray, **changes)
    assert sum("worker 1 died" in str(each.message) for each in told) == 2 and len(made) == 3
    # rounding of sums in another order, as many times larger as the equations are badly conditioned: 2e-5 was seen
    assert weights_apart(alone.policy, several.policy) < 1e-4
    spent, lost = several.ledger.phases, several.ledger.phases["lost with workers"]
    for name, phase in alone.ledger.phases.items():
        assert (spent[name].forwards, spent[name].backwards) == (phase.forwards, phase.backwards)
    assert spent.keys() == alone.ledger.phases.keys() | {"lost with workers"} and lost.forwards > 0


@ray_is_noisy
def test_a_local_ray_calibrates_as_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = local_ray(monkeypatch)
    made = noted(monkeypatch, ray_cluster().Actor)
    several = run(tmp_path / "several", workers=2, ray="local")
    assert len(made) == 1 and not cluster.is_initialized()
    alone = run(tmp_path / "alone")
    assert weights_apart(alone.policy, several.policy) < 1e-4
    assert [*several.ledger.phases] == [*alone.ledger.phases]


@ray_is_noisy
@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto", "nonsense"])
def test_a_cluster_that_is_not_there_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(CachesmithError, match=r"no Ray cluster at .*start one with"):
        run(tmp_path, workers=2, ray=address)


@ray_is_noisy
def test_more_workers_than_a_cluster_has_room_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ray(monkeypatch), "available_resources", lambda: {"CPU": 16.0, "GPU": 2.0})
    check_room = ray_cluster().check_room
    check_room("cpu", 16)
    check_room("cuda", 2)
    with pytest.raises(PolicyError, match=r"2 GPUs free for 7 workers .* write --workers 3"):
        check_room("cuda", 7)


@ray_is_noisy
def test_a_worker_without_a_place_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = local_ray(monkeypatch)

    def get(_: Any, timeout: float | None = None) -> None:
        raise ray.exceptions.GetTimeoutError if timeout else ray.exceptions.ActorDiedError

    monkeypatch.setattr(ray, "get", get)
    actor = object.__new__(ray_cluster().Actor)
    method = SimpleNamespace(remote=lambda *_: None)
    actor._actor, actor._started = SimpleNamespace(__ray_ready__=method, answer=method), False
    with pytest.raises(CachesmithError, match="no place within 600 s; add a machine"):
        actor.ask(b"")
    actor._started = True
    with pytest.raises(GoneError, match="actor died"):
        actor.ask(b"")


def test_ray_has_to_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachesmith.calibrate.fleet.hire.find_spec", lambda _: None)
    with pytest.raises(CachesmithError, match=r"ray is not installed; .*cachesmith\[fleet\]"):
        run(tmp_path, workers=2, ray="local")


@pytest.mark.slow
def test_ctrl_c_ends_all_workers_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = noted(monkeypatch, Process)
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
