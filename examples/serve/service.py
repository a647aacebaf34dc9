"""A queue, workers, and the choice of a profile: nothing here knows of HTTP or of models."""

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

from metrics import Metrics
from painter import Picture


class Draws(Protocol):
    """What a worker draws with, see `painter.Painter`. `profiles`: best quality first."""

    profiles: list[str]

    def __call__(self, prompt: str, seed: int, profile: str) -> Picture:
        """Draw."""


class FullError(Exception):
    """The queue is full, or the service is stopping."""


class TooLateError(Exception):
    """The deadline passed before a worker was free."""


@dataclass
class Job:
    """A request. `profile`: the best one that may be used. `deadline`: in `monotonic` time."""

    prompt: str
    seed: int
    profile: str
    deadline: float | None = None
    arrived: float = field(default_factory=monotonic)
    answer: "Future[Picture]" = field(default_factory=Future)


class Estimates:
    """Seconds that every profile takes: a moving average of what it took."""

    NEWEST = 0.3
    """Weight of the newest measurement."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    def note(self, profile: str, seconds: float) -> None:
        """A picture took so long."""
        with self._lock:
            known = self._seconds.get(profile, seconds)
            self._seconds[profile] = known + self.NEWEST * (seconds - known)

    def best(self, profiles: Sequence[str], left: float) -> str:
        """Return the first of `profiles` that fits into `left` seconds; the fastest where none does."""
        with self._lock:
            known = {name: self._seconds.get(name, 0.0) for name in profiles}
        return next((name for name in profiles if known[name] <= left), min(known, key=known.__getitem__))


class Service:
    """Threads that take jobs off one queue, each with a painter of its own.

    capacity: jobs that may wait. Raises `FullError` when there is no place.
    """

    def __init__(self, painters: Sequence[Draws], capacity: int, metrics: Metrics):
        self.profiles = painters[0].profiles
        self.ready = False
        self._metrics = metrics
        self._estimates = Estimates()
        self._jobs: queue.Queue[Job | None] = queue.Queue(capacity)
        self._accepting = True
        self._threads = [threading.Thread(target=self._work, args=(draw,), daemon=True) for draw in painters]
        self._painters = painters
        metrics.follow_queue(self._jobs.qsize)

    def start(self, prompt: str) -> None:
        """Warm every painter up with this prompt, learn how long each profile takes, then take jobs."""
        first, *others = self._painters
        for profile in self.profiles:
            first(prompt, 0, profile)
            self._estimates.note(profile, first(prompt, 0, profile).seconds)
        for painter in others:
            painter(prompt, 0, self.profiles[-1])
        for thread in self._threads:
            thread.start()
        self.ready = True

    def submit(self, job: Job) -> "Future[Picture]":
        """Queue a job; its answer comes with the future, `TooLateError` and errors included."""
        if not self._accepting:
            raise FullError("the service is stopping")
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise FullError(f"{self._jobs.maxsize} requests wait already") from None
        return job.answer

    def stop(self) -> None:
        """Refuse new jobs, finish those that wait, and return when all workers are done."""
        self._accepting = self.ready = False
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self, painter: Draws) -> None:
        while (job := self._jobs.get()) is not None:
            # a client that went away is not worth a picture
            if job.answer.set_running_or_notify_cancel():
                self._answer(job, painter)

    def _answer(self, job: Job, painter: Draws) -> None:
        try:
            picture = painter(job.prompt, job.seed, self._profile(job))
        except Exception as error:
            self._metrics.failed(job.profile, "late" if isinstance(error, TooLateError) else "error")
            job.answer.set_exception(error)
            return
        self._estimates.note(picture.profile, picture.seconds)
        now = monotonic()
        late = job.deadline is not None and now > job.deadline
        self._metrics.drawn(picture, now - job.arrived, late)
        job.answer.set_result(picture)

    def _profile(self, job: Job) -> str:
        """The profile to draw with, decided when a worker is free: how long the job waited is known then."""
        if job.deadline is None:
            return job.profile
        left = job.deadline - monotonic()
        if left <= 0:
            raise TooLateError("the deadline passed while the request waited")
        return self._estimates.best(self.profiles[self.profiles.index(job.profile) :], left)
