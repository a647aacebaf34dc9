"""Bytes between workers and whoever leads them, told from shapes: what is in the messages, less their envelopes.

python benchmarks/fleet.py

Prints the table of `fleet.md` that is on paper: the plan of FLUX.1-dev at NFC 8 of 50 steps.
`tests/calibrate/fleet/test_remote.py` holds what is told here against the messages.
"""

from dataclasses import dataclass

from cachesmith.calibrate import CalibrationConfig
from cachesmith.calibrate.closed_loop.axes import AXES, RAW
from cachesmith.calibrate.closed_loop.fit import FOLDS
from cachesmith.calibrate.closed_loop.lanes import Schedule
from cachesmith.calibrate.cost.plan import longest_share, plan_of
from cachesmith.calibrate.fleet.groups import Group, shared_out

FLOAT_BYTES = 4
"""Bytes of a number."""


@dataclass(frozen=True)
class Shapes:
    """samples: of the walk, or of one gradient; workers: who have them; away: those that are not in this process."""

    schedule: Schedule
    channels: int
    samples: int
    folds: int
    workers: int
    away: int

    @property
    def unknowns(self) -> int:
        """Of a segment."""
        return len(self.schedule.lanes) * AXES * self.channels

    @property
    def held(self) -> list[list[int]]:
        """Numbers of the samples of each worker that is away and has any."""
        groups = [Group(tuple(range(self.samples)), (None,) * self.samples)]  # type: ignore[arg-type]
        shares = shared_out(groups, self.workers)[self.workers - self.away :]
        return [[n for group in share.values() for n in group.numbers] for share in shares if share]


def walk_bytes(shapes: Shapes) -> int:
    """Of one walk of a segment: every fold's weights to each worker, a squared error of each sample back."""
    theta = shapes.folds * shapes.unknowns
    return FLOAT_BYTES * sum(theta + len(own) for own in shapes.held)


def equation_bytes(shapes: Shapes) -> int:
    """Of a segment's equations: weights to each worker; half a matrix of each fold that it has back, and vectors."""
    size, total = shapes.unknowns, 0
    for own in shapes.held:
        matrices = len({number % shapes.folds for number in own}) * size * (size + 1) // 2
        total += shapes.folds * size + len(own) + matrices + shapes.folds * size + size
    return FLOAT_BYTES * total


def gradient_bytes(shapes: Shapes, segments: int) -> int:
    """Of one gradient: all weights to each worker that has samples of it; each sample's gradient and errors back."""
    forecast = sum(letter != "C" for letter in shapes.schedule.mask)
    rows = forecast * len(shapes.schedule.lanes) * RAW * shapes.channels
    up = segments * (shapes.unknowns + 1)
    return FLOAT_BYTES * sum(rows + segments * shapes.unknowns + len(own) * up for own in shapes.held)


def fit_bytes(shapes: Shapes, segments: int, turns: float, walks: float) -> int:
    """Of least squares with so many turns and walks a segment."""
    return round(segments * (turns * equation_bytes(shapes) + walks * walk_bytes(shapes)))


CHANNELS, STEPS, COMPUTED = 3072, 50, 8
SEGMENTS, TURNS, WALKS = 7, 2, 5
"""Of the schedule: segments that forecast; turns and walks of each that are assumed."""


def main() -> None:
    """Print a line for each number of workers."""
    plan = plan_of(CalibrationConfig(steps=STEPS, budget=100, speedups=(STEPS / COMPUTED,)))
    schedule = Schedule("C" + "CFFFFFF" * SEGMENTS)
    print(
        "| workers | run equivalents of the busiest | one walk | equations of one turn | least squares | one gradient |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for workers in (1, 2, 8, 64):
        share = longest_share(plan, workers)
        fit = Shapes(schedule, CHANNELS, plan.samples, FOLDS, workers, workers - 1)
        descent = Shapes(schedule, CHANNELS, plan.size, FOLDS, workers, workers - 1)
        amounts = [
            walk_bytes(fit),
            equation_bytes(fit),
            fit_bytes(fit, SEGMENTS, TURNS, WALKS),
            gradient_bytes(descent, SEGMENTS),
        ]
        print(f"| {workers} | {share:.1f} | {' | '.join(_written(amount) for amount in amounts)} |")


def _written(amount: float) -> str:
    if amount < 1e9:
        return f"{amount / 1e6:.3g} MB" if amount else "0"
    return f"{amount / 1e9:.3g} GB"


if __name__ == "__main__":
    main()
