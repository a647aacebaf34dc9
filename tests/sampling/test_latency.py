import pytest

from cachesmith.sampling.latency import Stopwatch, latency


def test_percentiles_lie_between_neighbours() -> None:
    calls = [float(n) for n in range(101)]
    found = latency(calls[::-1], 7.0)
    assert (found.calls, found.p50, found.p90, found.p99, found.pictures_per_hour) == (
        101,
        50.0,
        90.0,
        99.0,
        7.0,
    )
    assert latency([1.0, 2.0], 1.0).p90 == pytest.approx(1.9)


def test_a_stopwatch_takes_single_calls_of_several_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 11.0, 13.0, 20.0, 20.5])
    monkeypatch.setattr("cachesmith.sampling.latency.perf_counter", lambda: next(times))
    watch = Stopwatch()
    for calls in (2, 1):
        watch.start()
        for _ in range(calls):
            watch.lap(4)
    assert watch.seconds == [1.0, 2.0, 0.5]
