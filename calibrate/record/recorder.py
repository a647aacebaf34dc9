"""Record full trajectories: streaming statistics per lane, never the raw features of a whole run.

A lane is one stream of one unit. For every lane and step the recorder keeps how far input and output moved since the
lane's anchor (two numbers a sample), and, where asked, a fixed random subset of the output's elements, from which
schedules are planned. A new step becomes the anchor every `DISTANCES` steps, as if it were computed: of no lane is more
than one step remembered, and norms stay on the device until they are asked for.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cachesmith.policies import Units
from cachesmith.runtime import Tick, Unit, UnitResult, Watcher, resolve_units
from cachesmith.runtime.pipeline_call import PipelineCall
from cachesmith.runtime.tensors.norms import sample_norm

DISTANCES = 5
"""Longest distance, in steps, over which movements are recorded; then the anchor is moved."""

SKETCH = 2048
"""Elements of a sample's output that are kept for planning schedules."""


@dataclass
class Movements:
    """|I_t - I_(t-k)| and |O_t - O_(t-k)| of one lane: entries (step, distance, [B], [B]) in recording order."""

    entries: list[tuple[int, int, Tensor, Tensor]] = field(default_factory=list)

    def on_host(self) -> "Movements":
        """The same on the host."""
        return Movements([(step, k, moved.cpu(), made.cpu()) for step, k, moved, made in self.entries])


class Recorder(Watcher):
    """Notes how input and output of every unit move."""

    def __init__(self, sketch: bool = False, seed: int = 0):
        super().__init__()
        self.movements: dict[str, Movements] = {}
        self.sketches: dict[str, dict[tuple[int, str, int], Tensor]] = {}
        self.branches: set[str] = set()
        self.calls: list[PipelineCall] = []
        self.channels: dict[str, int] = {}
        self._anchors: dict[tuple[str, str], tuple[int, Tensor, Tensor]] = {}
        self._sketch, self._seed = sketch, seed
        self._elements: dict[int, Tensor] = {}

    def begin(self, tick: Tick) -> None:
        """A transformer call, of which the guidance branch is noted, and what the pipeline was asked for."""
        super().begin(tick)
        self.branches.add(tick.branch)
        if not self.calls or self.calls[-1] is not tick.call:
            self.calls.append(tick.call)

    def restart(self) -> None:
        """Forget the anchors of the run before."""
        self._anchors.clear()

    def observe(self, result: UnitResult) -> None:
        """Note the movements of a computed unit."""
        if self._tick.step is None:
            return
        for stream, moved, output in zip(result.unit.streams, result.inputs, result.feature, strict=True):
            lane = lane_name(result.unit, stream)
            self.channels[lane] = output.shape[-1]
            self._note(lane, moved, output)
            if self._sketch:
                key = (self._tick.run, self._tick.branch, self._tick.step)
                self.sketches.setdefault(lane, {})[key] = self._pick(output)

    def _note(self, lane: str, moved: Tensor, output: Tensor) -> None:
        assert self._tick.step is not None
        key = lane, self._tick.branch
        anchor = self._anchors.get(key)
        if anchor is not None:
            pair = sample_norm(moved - anchor[1]), sample_norm(output - anchor[2])
            entries = self.movements.setdefault(lane, Movements()).entries
            entries.append((self._tick.step, self._tick.step - anchor[0], *pair))
        if anchor is None or self._tick.step - anchor[0] >= DISTANCES:
            self._anchors[key] = self._tick.step, moved.clone(), output

    def _pick(self, output: Tensor) -> Tensor:
        flat = output.flatten(1)
        size = flat.shape[1]
        if size not in self._elements:
            generator = torch.Generator().manual_seed(self._seed)
            self._elements[size] = torch.randint(size, (min(SKETCH, size),), generator=generator)
        return flat[:, self._elements[size].to(flat.device)].float().cpu()


def joined_sketches(sketches: dict[tuple[int, str, int], Tensor], steps: int) -> Tensor:
    """One lane's recorded subsets, [steps, samples, elements]; guidance branches count as samples of their own."""
    runs = sorted({(run, branch) for run, branch, _ in sketches})
    return torch.cat([torch.stack([sketches[r, b, s] for s in range(steps)]) for r, b in runs], dim=1)


def lane_name(unit: Unit, stream: str) -> str:
    """The name of a lane: the unit's, and the stream's if the unit has several."""
    return unit.name if len(unit.streams) == 1 else f"{unit.name}/{stream}"


def lane_names(transformer: nn.Module, units: Units) -> list[str]:
    """All lanes of a granularity, in the order of the arrays in a policy file."""
    return [lane_name(unit, stream) for unit in resolve_units(transformer, units) for stream in unit.streams]
