"""Choose among schedules by what their weights can become: successive halving (arXiv 1502.07943).

The schedule that is best with untuned weights is often not the best with tuned ones: a line wants computed steps close
together where the run begins, fitted weights do not. So every schedule is tuned for a while, the better half for a
while longer, and so on until one is left.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from cachesmith.calibrate.config import CalibrationConfig
from cachesmith.calibrate.tune.improve import tuned
from cachesmith.calibrate.tune.rows import Rows
from cachesmith.sampling.evaluate import Evaluator

POWERS = (1.0, 1.15, 1.3, 1.5)
"""Spacings that enter a race: step i of n is computed at (i / n) ** power of the run."""

ROUND = 6
"""A round takes this part of the iterations that the winner will be tuned for."""

SHORTEST = 20
"""Shorter rounds tell schedules apart no better than chance does, and no race is run."""

JUDGED = 128
"""Samples that decide a round: by 32 of them, schedules half a decibel apart are ranked by chance."""

CALM = 0.35
"""Steps of a round are smaller by this: it ends before the noise of large ones has died down."""


def rounds(entrants: int) -> list[int]:
    """How many run in each round."""
    sizes = []
    while entrants > 1:
        sizes.append(entrants)
        entrants //= 2
    return sizes


def length(entrants: int, iterations: int) -> int:
    """Iterations that a race takes in all: 0 where its rounds would be too short."""
    each = iterations // ROUND
    return sum(rounds(entrants)) * each if each >= SHORTEST else 0


def race(
    evaluator: Evaluator,
    entrants: Mapping[str, Rows],
    saved: Callable[[str, int], Path],
    config: CalibrationConfig,
    advance: Callable[..., None],
) -> tuple[str, Rows]:
    """Return the mask that is left of `entrants` (mask -> the weights it starts from), and its weights by then.

    saved: names the file for what a mask has reached in a round, for a resumed run.
    """
    field = dict(entrants)
    for number, size in enumerate(rounds(len(entrants))):
        short = replace(
            config,
            iterations=config.iterations // ROUND,
            learning_rate=config.learning_rate * CALM,
            seed=config.seed + number,
        )
        reached = {
            mask: tuned(evaluator, mask, rows, saved(mask, number), short, advance)
            for mask, rows in field.items()
        }
        scores = {mask: evaluator(rows.policy(mask, "race"), JUDGED).psnr for mask, rows in reached.items()}
        best = sorted(scores, key=lambda mask: -scores[mask])[: size // 2]
        field = {mask: reached[mask] for mask in best}
    ((mask, rows),) = field.items()
    return mask, rows
