"""How long a calibration takes, over all the runs that it was interrupted between."""

from pathlib import Path
from time import perf_counter
from types import TracebackType

from cachesmith.files import replacing


class Elapsed:
    """Wall time in a file: while the context is open it counts, and what former runs spent is included."""

    def __init__(self, path: Path):
        self._path = path
        self._former = _read(path)
        self._began = perf_counter()

    def __enter__(self) -> "Elapsed":
        self._began = perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        total = self.seconds
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._path) as part:
            part.write_text(f"{total:.3f}\n", encoding="utf-8")

    @property
    def seconds(self) -> float:
        """Seconds until now."""
        return self._former + perf_counter() - self._began


def _read(path: Path) -> float:
    try:
        return max(0.0, float(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return 0.0
