"""Run everybody: every setting on a few requests; those that the tables show on all, and against the clock."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cachesmith.sampling.metrics import Perceptual
from cachesmith.sampling.pictures import Pictures
from cachesmith.sampling.requests import Request
from cachesmith.sampling.scores import compare, summarise
from cachesmith.sampling.timing import elapsed, medians
from contest.contestant import Contestant, Course, Dial, Entry, nothing
from contest.journal import Journal, Record
from contest.ours import SLACK
from contest.yardstick import Meter, play, undone

PROBES = 9
"""Sampling runs spent on a threshold for one budget."""
UNCACHED = Contestant("uncached", "uncached", "uncached", nothing)

Note = Callable[[str], None]
Pick = Callable[[list["Result"]], set[str]]


@dataclass(frozen=True)
class Result:
    """One row: full computations a picture, quality against the uncached picture, or why there is none.

    `work`: multiply-adds of the blocks' linear layers, in full steps; `nfc`: the tool's own count of block executions /
    blocks if it has one, else the same. `samples`: requests it was measured on.
    """

    name: str
    family: str
    method: str
    nfc: float = 0.0
    work: float = 0.0
    psnr: float = 0.0
    psnr_low: float = 0.0
    psnr_high: float = 0.0
    ssim: float = 0.0
    latent_error: float = 0.0
    lpips: float | None = None
    cache_bytes: int = 0
    samples: int = 0
    seconds: float | None = None
    error: str | None = None

    def within(self, budget: float) -> bool:
        """Whether the setting counts for a budget."""
        return self.error is None and self.nfc <= budget + SLACK


class Race:
    """Measures contestants once each; everything measured goes to the journal."""

    def __init__(self, course: Course, journal: Journal, lpips: Perceptual | None = None):
        self.course, self.journal, self.lpips = course, journal, lpips
        self.reference, meter = play(course.renderer, UNCACHED, course.requests)
        self.step = {len(course.requests): meter.work / len(course.requests) / course.steps}
        if len(course.screen) not in self.step:  # its prompts may be padded to another length
            _, meter = play(course.renderer, UNCACHED, course.screen)
            self.step[len(course.screen)] = meter.work / len(course.screen) / course.steps
        self.entered: dict[str, Contestant] = {UNCACHED.name: UNCACHED}

    def run(self, entries: Iterable[Entry], note: Note) -> list[Result]:
        """Measure every entry, a dial at each budget; `note(name)` is called before each."""
        results = [self._result(UNCACHED, self.course.screen)]
        for entry in entries:
            note(entry.method)
            chosen = self._settings(entry) if isinstance(entry, Dial) else [entry]
            for contestant in chosen:
                if contestant.name not in self.entered:
                    self.entered[contestant.name] = contestant
                    results.append(self._result(contestant, self.course.screen))
        return results

    def confirm(self, results: list[Result], pick: Pick, note: Note) -> list[Result]:
        """Measure what `pick(results)` names on all requests, until it names nothing else; return all results."""
        full = len(self.course.requests)
        found = {result.name: result for result in results}
        while waiting := [name for name in pick([*found.values()]) if found[name].samples < full]:
            for name in sorted(waiting):
                note(name)
                found[name] = self._result(self.entered[name], self.course.requests)
        return [*found.values()]

    def _result(self, contestant: Contestant, requests: tuple[Request, ...]) -> Result:
        known = self.journal.get(f"quality of {len(requests)}", contestant.name)
        record = known or self._measure(contestant, requests)
        values = {k: v for k, v in record.items() if k not in ("kind", "name")}
        return Result(contestant.name, contestant.family, contestant.method, **values)

    def _measure(self, contestant: Contestant, requests: tuple[Request, ...]) -> Record:
        count = len(requests)
        try:
            pictures, meter = play(self.course.renderer, contestant, requests)
            values = self._scores(pictures) | {**self._spent(meter, count), "cache_bytes": meter.peak}
        except Exception as error:  # another tool's failure is a result
            values = {"error": first_sentence(error)}
        return self.journal.add(f"quality of {count}", contestant.name, samples=count, **values)

    def _spent(self, meter: Meter, samples: int) -> dict[str, float]:
        work = meter.work / samples / self.step[samples]
        return {"work": work, "nfc": work if meter.nfc is None else meter.nfc}

    def _scores(self, pictures: Pictures) -> dict[str, Any]:
        count = len(pictures.images)
        quality = summarise(compare(self.reference[:count], pictures, self.lpips), seed=0)
        return quality.model_dump(exclude={"samples", "metrics", "parts", "floor", "above_floor"})

    def _settings(self, dial: Dial) -> list[Contestant]:
        """The dial at the threshold that comes closest to each budget from below; once alone if it fails."""
        found = [self._turn(dial, budget) for budget in self.course.budgets]
        return [dial.at(value) for value in found if value is not None] or [dial.at(dial.high)]

    def _turn(self, dial: Dial, budget: float) -> float | None:
        low, high, best = dial.low, dial.high, None
        least = self._probe(dial.at(high))
        if least is None or least > budget + SLACK:
            return None
        for _ in range(PROBES):
            middle = float(f"{(low * high) ** 0.5:.4g}")
            nfc = self._probe(dial.at(middle))
            if nfc is None:
                return None
            if nfc <= budget + SLACK:
                best, high = middle, middle
            else:
                low = middle
            if best is not None and abs(nfc - budget) <= SLACK:
                break
        return best

    def _probe(self, contestant: Contestant) -> float | None:
        record = self.journal.get("probe", contestant.name)
        if record is None:
            some = self.course.screen
            try:
                _, meter = play(self.course.renderer, contestant, some)
                record = self.journal.add("probe", contestant.name, **self._spent(meter, len(some)))
            except Exception as error:  # reported when the contestant itself is run
                record = self.journal.add("probe", contestant.name, nfc=None, error=first_sentence(error))
        nfc: float | None = record["nfc"]
        return nfc

    def time(self, results: list[Result], names: set[str], repeats: int, note: Note) -> list[Result]:
        """Time the named contestants in turns on the screened requests, and return all results with the medians.

        Times are not kept for another process: only those of one run compare.
        """
        seconds: dict[str, tuple[float, ...]] = {name: () for name in self.entered if name in names}
        for turn in range(repeats):
            for name in seconds:
                note(f"{turn + 1}: {name}")
                seconds[name] = (*seconds[name], self._seconds(name))
        found = medians(seconds)
        return [replace(result, seconds=found.get(result.name)) for result in results]

    def _seconds(self, name: str) -> float:
        renderer = self.course.renderer
        with undone(renderer.pipe), self.entered[name].enter(renderer):
            return elapsed(partial(renderer, self.course.screen), renderer.pipe.device)


def first_sentence(error: Exception) -> str:
    """Return an error's class and its first sentence, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text.split('. ')[0][:200]}"
