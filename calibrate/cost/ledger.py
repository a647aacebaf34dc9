"""What a calibration costs, in run equivalents, and how long it takes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import torch

from cachesmith.files import replacing


@dataclass
class Phase:
    """Forwards and backwards of the denoiser, each for one sample and step; a recomputation is a forward.

    worker_seconds: seconds times the workers that there were.
    """

    forwards: float = 0.0
    backwards: float = 0.0
    seconds: float = 0.0
    peak_bytes: int = 0
    worker_seconds: float = 0.0

    def runs(self, steps: int) -> float:
        """Run equivalents: one is the forwards of one sample's uncached run of `steps` steps."""
        return (self.forwards + self.backwards) / steps


class Ledger:
    """Counts by phase; kept in a file, so that an interrupted calibration is charged for all that it did."""

    def __init__(self, steps: int, path: Path, device: torch.device):
        self.steps, self._path, self._device = steps, path, device
        self.workers = 1
        self.phases: dict[str, Phase] = {}
        if path.exists():
            read = json.loads(path.read_text(encoding="utf-8"))
            self.phases = {name: Phase(**phase) for name, phase in read.items()}

    @property
    def runs(self) -> float:
        """Run equivalents of all phases."""
        return sum(phase.runs(self.steps) for phase in self.phases.values())

    @property
    def seconds(self) -> float:
        """Seconds of all phases."""
        return sum(phase.seconds for phase in self.phases.values())

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Time a phase, and write the file when it ends, however it does."""
        phase = self.phases.setdefault(name, Phase())
        cuda = self._device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        began = perf_counter()
        try:
            yield phase
        finally:
            seconds = perf_counter() - began
            phase.seconds += seconds
            phase.worker_seconds += seconds * self.workers
            if cuda:
                phase.peak_bytes = max(phase.peak_bytes, torch.cuda.max_memory_allocated(self._device))
            self.save()

    def save(self) -> None:
        """Write the file."""
        with replacing(self._path) as part:
            part.write_text(json.dumps({n: asdict(p) for n, p in self.phases.items()}), encoding="utf-8")

    def table(self) -> str:
        """A Markdown table of all phases."""
        lines = [
            "| phase | forwards | backwards | run equivalents | seconds |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for name, phase in self.phases.items():
            lines.append(
                f"| {name} | {phase.forwards:.0f} | {phase.backwards:.0f} | {phase.runs(self.steps):.1f} "
                f"| {phase.seconds:.0f} |"
            )
        lines.append(f"| **all** | | | **{self.runs:.1f}** | **{self.seconds:.0f}** |")
        return "\n".join(lines) + "\n"


def seconds_per_run(work: Path, steps: int) -> float | None:
    """Seconds that one worker takes for a run equivalent, by the newest ledger in a work folder; None without one."""
    ledgers = sorted(work.glob("ledger-*.json"), key=lambda path: path.stat().st_mtime)
    phases = [Phase(**each) for path in ledgers[-1:] for each in json.loads(path.read_text("utf-8")).values()]
    runs = sum(phase.runs(steps) for phase in phases)
    return sum(phase.worker_seconds for phase in phases) / runs if runs else None
