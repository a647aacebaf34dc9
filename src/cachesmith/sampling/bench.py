"""Compare policies on one model: same requests, same seeds, one process, uncached first."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from typing import Any

from rich.progress import Progress
from rich.table import Table

from cachesmith.policies import Policy, Quality
from cachesmith.runtime import Engines, Session, Stats, apply
from cachesmith.sampling.latency import Latency, Stopwatch, latency
from cachesmith.sampling.metrics import Metric, Perceptual, shown
from cachesmith.sampling.pictures import Pictures
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request, differing_arguments
from cachesmith.sampling.scores import compare, summarise, tell_left_out
from cachesmith.sampling.timing import elapsed, interleaved, medians
from cachesmith.sampling.waypoints import visited_steps

UNCACHED = "uncached"

Contestant = tuple[Policy, str | None] | tuple[Policy, str | None, Engines] | None
"""A policy, the name of one of its profiles, and what computes its units if not torch; None computes everything."""

Keep = Callable[[str, Pictures], None]
"""Called with each contestant's name and pictures, the uncached ones first."""


@dataclass(frozen=True)
class BenchRow:
    """What one contestant did.

    `seconds` is the median of `runs`, whole pipeline calls over all requests; `efficiency` is the speed-up divided by
    steps / nfc, the most that skipping can give: steps are those that uncached runs visit, on average.
    """

    name: str
    nfc: float
    quality: Quality
    seconds: float
    speedup: float
    efficiency: float
    cache_bytes: int
    fallbacks: dict[str, int]
    runs: tuple[float, ...]
    latency: Latency | None = None

    @property
    def psnr(self) -> float:
        """Mean PSNR in dB."""
        return self.quality.psnr

    def as_json(self) -> dict[str, Any]:
        """Return the row as plain JSON values, the quality's beside the others."""
        own = {name: value for name, value in asdict(self).items() if name != "quality"}
        return {**own, **self.quality.model_dump(mode="json"), "runs": list(self.runs)}


def bench(
    renderer: Renderer,
    contestants: Mapping[str, Contestant],
    requests: Sequence[Request],
    repeats: int = 3,
    *,
    progress: Progress | None = None,
    keep: Keep | None = None,
    lpips: Perceptual | None = None,
) -> list[BenchRow]:
    """Sample all `requests` once per contestant for quality (and warm-up), then `repeats` times for speed, in turns."""
    tell_left_out(renderer, requests)
    entered = with_uncached(contestants)
    progress = progress or Progress(disable=True)
    task = progress.add_task("bench", total=len(entered) * (1 + repeats), note="")
    scored: dict[str, tuple[Quality, Stats | None]] = {}
    reference: Pictures | None = None
    visited: list[int] = []
    for name, contestant in entered.items():
        progress.update(task, description=f"quality of {name}")
        with visited_steps(renderer.pipe.scheduler) as runs:
            pictures, stats = play(renderer, contestant, requests)
        if reference is None:
            reference, visited = pictures, runs
        scores = compare(reference, pictures, lpips)
        scored[name] = summarise(scores, seed=0, parts=differing_arguments(requests)), stats
        if keep is not None:
            keep(name, pictures)
        progress.advance(task)
    steps = fmean(visited or [renderer.steps])
    progress.update(task, description="speed")
    watches = {name: Stopwatch() for name in entered}
    calls = {name: partial(_timed, renderer, c, requests, watches[name]) for name, c in entered.items()}
    seconds = interleaved(calls, repeats, lambda _: progress.advance(task))
    return [_row(name, *scored[name], seconds, steps, watches[name], len(requests)) for name in entered]


def play(
    renderer: Renderer, contestant: Contestant, requests: Sequence[Request]
) -> tuple[Pictures, Stats | None]:
    """Sample `requests` under one contestant; the stats are None where nothing is cached.

    Raises `CachesmithError` where the uncached pictures are not finite.
    """
    if contestant is None:
        return renderer.reference(requests), None
    with _applied(renderer, contestant) as session:
        pictures = renderer(requests)
    return pictures, None if session is None else session.stats


def with_uncached(contestants: Mapping[str, Contestant]) -> dict[str, Contestant]:
    """Put `uncached` first, added if missing."""
    return {UNCACHED: None} | {name: c for name, c in contestants.items() if name != UNCACHED}


def _applied(renderer: Renderer, contestant: Contestant) -> AbstractContextManager[Session | None]:
    if contestant is None:
        return nullcontext()
    policy, profile, *engines = contestant
    return apply(renderer.pipe, policy, profile, bundle=engines[0] if engines else None)


def _timed(
    renderer: Renderer, contestant: Contestant, requests: Sequence[Request], watch: Stopwatch
) -> float:
    # entering the policy is left out: it happens once per pipeline, not once per picture
    with _applied(renderer, contestant):
        watch.start()
        return elapsed(partial(renderer, requests, watch.lap), renderer.pipe.device)


def _row(
    name: str,
    quality: Quality,
    stats: Stats | None,
    runs: Mapping[str, tuple[float, ...]],
    steps: float,
    watch: Stopwatch,
    pictures: int,
) -> BenchRow:
    seconds = medians(runs)
    speedup = seconds[UNCACHED] / seconds[name]
    nfc = steps if stats is None else stats.nfc
    return BenchRow(
        name=name,
        nfc=nfc,
        quality=quality,
        seconds=seconds[name],
        speedup=speedup,
        efficiency=speedup * nfc / steps,
        cache_bytes=0 if stats is None else stats.cache_bytes,
        fallbacks={} if stats is None else dict(stats.fallbacks),
        runs=runs[name],
        latency=latency(watch.seconds, 3600 * pictures / seconds[name]),
    )


SPENT = ("seconds", "measured speed-up", "efficiency", "cache MiB", "fallbacks")
"""Headings after those of the metrics."""


def bench_headings(rows: Sequence[BenchRow]) -> tuple[str, ...]:
    """Return the headings of `cells`: every metric that was measured, PSNR also of the worst sample."""
    first, *others = shown([row.quality for row in rows])
    return "", "NFC", first.heading, "worst", *(metric.heading for metric in others), *SPENT


def _cells(row: BenchRow, metrics: Sequence[Metric]) -> tuple[str, ...]:
    """Return one row as text, by the metrics `shown`; the uncached pictures have nothing to differ from."""
    first, *others = metrics
    quality = (
        first.text(row.quality.psnr),
        first.text(row.quality.worst(first.name)),
        *(metric.text(row.quality.mean(metric.name)) for metric in others),
    )
    return (
        row.name,
        f"{row.nfc:.2f}",
        *(("-",) * len(quality) if row.name == UNCACHED else quality),
        f"{row.seconds:.2f}",
        f"{row.speedup:.2f}x",
        f"{row.efficiency:.2f}",
        f"{row.cache_bytes / 2**20:.2f}",
        str(sum(row.fallbacks.values())),
    )


def markdown(rows: Sequence[BenchRow]) -> str:
    """Return the rows as a Markdown table."""
    heads = bench_headings(rows)
    parts = [heads, ("---", *("---:",) * (len(heads) - 1)), *bench_lines(rows)]
    return "".join(f"| {' | '.join(part)} |\n" for part in parts)


def table(rows: Sequence[BenchRow]) -> Table:
    """Return the rows as a table for the terminal."""
    made = Table(box=None, pad_edge=False)
    for index, heading in enumerate(bench_headings(rows)):
        made.add_column(heading, justify="right" if index else "left", no_wrap=True)
    for line in bench_lines(rows):
        made.add_row(*line)
    return made


def bench_lines(rows: Sequence[BenchRow]) -> list[tuple[str, ...]]:
    """Return the rows as text, in the order of `headings`."""
    metrics = shown([row.quality for row in rows])
    return [_cells(row, metrics) for row in rows]


def latency_table(rows: Sequence[BenchRow]) -> Table:
    """Return the seconds of single calls, and pictures an hour, as a table for the terminal."""
    shown = Table(box=None, pad_edge=False)
    for index, heading in enumerate(("", "calls", "p50 s", "p90 s", "p99 s", "pictures/hour")):
        shown.add_column(heading, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        if (one := row.latency) is not None:
            seconds = (f"{value:.2f}" for value in (one.p50, one.p90, one.p99))
            shown.add_row(row.name, str(one.calls), *seconds, f"{one.pictures_per_hour:,.0f}")
    return shown
