"""What Prometheus is told."""

from collections.abc import Callable

from painter import Picture
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)


class Metrics:
    """Counters of one service, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "cachesmith_requests", "Requests.", ["profile", "outcome"], registry=registry
        )
        self._nfc = Summary("cachesmith_nfc", "Full computations a picture.", ["profile"], registry=registry)
        self._fallbacks = Counter(
            "cachesmith_fallbacks", "Forecasts refused, by reason.", ["reason"], registry=registry
        )
        self._sampling = Histogram(
            "cachesmith_sampling_seconds",
            "Seconds a picture took.",
            ["profile"],
            registry=registry,
            buckets=BUCKETS,
        )
        self._total = Histogram(
            "cachesmith_request_seconds",
            "The same, with the wait.",
            ["profile"],
            registry=registry,
            buckets=BUCKETS,
        )
        self._missed = Counter("cachesmith_deadlines_missed", "Pictures that came late.", registry=registry)
        self._waiting = Gauge("cachesmith_queue", "Requests that wait.", registry=registry)

    def follow_queue(self, length: Callable[[], int]) -> None:
        """Report this as the number of waiting requests."""
        self._waiting.set_function(length)

    def drawn(self, picture: Picture, total: float, late: bool) -> None:
        """A picture was drawn, `total` seconds after its request came."""
        self._requests.labels(picture.profile, "ok").inc()
        self._nfc.labels(picture.profile).observe(picture.nfc)
        self._sampling.labels(picture.profile).observe(picture.seconds)
        self._total.labels(picture.profile).observe(total)
        self._missed.inc(late)
        for reason, count in picture.fallbacks.items():
            self._fallbacks.labels(reason).inc(count)

    def failed(self, profile: str, outcome: str) -> None:
        """A request got no picture."""
        self._requests.labels(profile, outcome).inc()

    def text(self) -> bytes:
        """Return all of it in Prometheus' format."""
        return generate_latest(self._registry)
