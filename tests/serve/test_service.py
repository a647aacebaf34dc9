"""Queue, deadlines, metrics and stopping, with painters that draw nothing; and replicas of a tiny model."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any

import pytest
import torch
from tests.serve.example import module
from tests.tiny import policy, sample_flux, tiny_flux

from cachesmith.runtime import apply, replicate

PROFILES = ["uncached", "quality", "fast"]
SECONDS = {"uncached": 4.0, "quality": 1.0, "fast": 0.25}


class Stub:
    """Claims the seconds of `SECONDS` and takes none; waits for `gate` where it is closed."""

    profiles = PROFILES

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.drawn: list[tuple[str, int, str]] = []

    def __call__(self, prompt: str, seed: int, profile: str) -> Any:
        assert self.gate.wait(10)
        if prompt == "broken":
            raise ValueError("no such prompt")
        self.drawn.append((prompt, seed, profile))
        fallbacks = {"not finite": 2} if prompt == "odd" else {}
        return module("painter").Picture(b"png", profile, 7.0, SECONDS[profile], fallbacks)


@contextmanager
def running(painters: list[Stub], capacity: int = 8) -> Iterator[tuple[Any, Any]]:
    metrics = module("metrics").Metrics()
    service = module("service").Service(painters, capacity, metrics)
    service.start("warm")
    try:
        yield service, metrics
    finally:
        for painter in painters:
            painter.gate.set()
        service.stop()


def job(prompt: str = "p", seed: int = 0, profile: str = "quality", left: float | None = None) -> Any:
    deadline = None if left is None else monotonic() + left
    return module("service").Job(prompt, seed, profile, deadline)


@pytest.mark.parametrize(
    ("profile", "left", "drawn"),
    [
        ("quality", None, "quality"),
        ("uncached", 60.0, "uncached"),
        ("uncached", 3.0, "quality"),
        ("uncached", 0.5, "fast"),
        ("quality", 60.0, "quality"),
        ("quality", 0.1, "fast"),
    ],
)
def test_a_deadline_takes_the_best_profile_that_fits(profile: str, left: float | None, drawn: str) -> None:
    with running([Stub()]) as (service, _):
        assert service.submit(job(profile=profile, left=left)).result(5).profile == drawn


def test_estimates_follow_what_pictures_take() -> None:
    estimates = module("service").Estimates()
    for seconds in (1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0):
        estimates.note("quality", seconds)
    estimates.note("fast", 0.1)
    assert estimates.best(["quality", "fast"], 1.5) == "fast"
    assert estimates.best(["quality", "fast"], 2.0) == "quality"
    assert estimates.best(["quality", "fast"], 0.01) == "fast"


def test_a_deadline_that_passed_in_the_queue_costs_no_work() -> None:
    painter = Stub()
    with running([painter]) as (service, metrics):
        painter.gate.clear()
        first, late = service.submit(job(seed=1)), service.submit(job(seed=2, left=0.05))
        sleep(0.2)
        painter.gate.set()
        assert first.result(5).profile == "quality"
        with pytest.raises(module("service").TooLateError):
            late.result(5)
        assert 2 not in [seed for _, seed, _ in painter.drawn]
        assert b'cachesmith_requests_total{outcome="late",profile="quality"} 1.0' in metrics.text()


def test_a_full_queue_refuses() -> None:
    painter = Stub()
    with running([painter], capacity=2) as (service, _):
        painter.gate.clear()
        answers = [service.submit(job())]
        for _ in range(100):  # until the worker has taken the first
            if not service._jobs.qsize():
                break
            sleep(0.01)
        answers += [service.submit(job()) for _ in range(2)]
        with pytest.raises(module("service").FullError, match="2 requests wait"):
            service.submit(job())
        painter.gate.set()
        assert [answer.result(5).png for answer in answers] == [b"png"] * 3


def test_a_request_whose_client_has_gone_is_not_drawn() -> None:
    painter = Stub()
    with running([painter]) as (service, _):
        painter.gate.clear()
        first, gone = service.submit(job(seed=1)), service.submit(job(seed=2))
        assert gone.cancel()
        painter.gate.set()
        first.result(5)
    assert 2 not in [seed for _, seed, _ in painter.drawn]


def test_stopping_finishes_what_waits_and_refuses_the_rest() -> None:
    painters = [Stub(), Stub()]
    with running(painters) as (service, _):
        for painter in painters:
            painter.gate.clear()
        answers = [service.submit(job(seed=seed)) for seed in range(5)]
        stopping = threading.Thread(target=service.stop)
        stopping.start()
        for _ in range(100):
            if not service._accepting:
                break
            sleep(0.01)
        with pytest.raises(module("service").FullError, match="stopping"):
            service.submit(job())
        for painter in painters:
            painter.gate.set()
        stopping.join(5)
        assert not stopping.is_alive() and all(answer.done() for answer in answers)


def test_an_error_is_that_requests_alone_and_counted() -> None:
    with running([Stub()]) as (service, metrics):
        with pytest.raises(ValueError, match="no such prompt"):
            service.submit(job("broken")).result(5)
        assert service.submit(job("odd")).result(5).fallbacks == {"not finite": 2}
        text = metrics.text().decode()
    assert 'cachesmith_requests_total{outcome="error",profile="quality"} 1.0' in text
    assert 'cachesmith_fallbacks_total{reason="not finite"} 2.0' in text
    assert 'cachesmith_nfc_sum{profile="quality"} 7.0' in text


def test_replicas_share_weights_and_nothing_else() -> None:
    pipe = tiny_flux()
    other = replicate(pipe)
    mine, theirs = dict(pipe.transformer.named_parameters()), dict(other.transformer.named_parameters())
    assert all(mine[name].data_ptr() == theirs[name].data_ptr() for name in mine)
    assert pipe.transformer is not other.transformer and pipe.scheduler is not other.scheduler
    modules = {id(part) for part in pipe.transformer.modules()}
    assert not modules & {id(part) for part in other.transformer.modules()}


def test_replicas_draw_at_once_what_each_draws_alone() -> None:
    pipes = [tiny_flux(), replicate(tiny_flux())]
    chosen = policy()
    alone = [sample_flux(tiny_flux(), seed=seed) for seed in range(2)]
    cached = []
    for seed in range(2):
        pipe = tiny_flux()
        with apply(pipe, chosen):
            cached.append(sample_flux(pipe, seed=seed))
    found: dict[int, list[Any]] = {0: [], 1: []}

    def draw(number: int) -> None:
        for _ in range(5):
            with apply(pipes[number], chosen):
                found[number].append(sample_flux(pipes[number], seed=number))

    threads = [threading.Thread(target=draw, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number in range(2):
        assert len(found[number]) == 5
        assert all(torch.equal(torch.tensor(f), torch.tensor(cached[number])) for f in found[number])
        assert abs(cached[number] - alone[number]).max() > 1e-5
