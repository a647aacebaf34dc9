"""What makes RFC better than TaylorSeer, and where it does not: its magnitude (RFE) or its gate (RCS)?

    python benchmarks/ablation.py --out benchmarks/fashion_dit

Attention and MLP outputs of the demo model, Taylor order 2; {uniform, RCS} x {Taylor, RFE} at three budgets. RCS
has its threshold set by bisection, with RFE; it decides for a whole batch, so two batch sizes are shown. Writes
`ablation.md`.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo_model import INTERVALS, MODEL, SLACK, open_renderer, unseen

from cachesmith.calibrate.methods.threshold import threshold_for
from cachesmith.commands.output import write_text
from cachesmith.policies import (
    Forecaster,
    Gate,
    Interval,
    Magnitude,
    Modules,
    Observed,
    Policy,
    Profile,
    Relational,
    Taylor,
    unbound,
)
from cachesmith.progress import stage
from cachesmith.sampling.evaluate import Evaluator, Outcome

BUDGETS, BATCHES = (8, 11, 14), (4, 32)
PROBES, PROBED = 10, 16
"""Runs and samples spent on a threshold."""
MAGNITUDES: dict[str, Magnitude | None] = {"Taylor": None, "RFE": Observed()}


def policy(gate: Gate, magnitude: Magnitude | None) -> Policy:
    """Return Taylor order 2 on modules with this gate and magnitude."""
    return unbound(
        Profile(units=Modules(), gate=gate, forecaster=Forecaster(rows=Taylor(order=2), magnitude=magnitude))
    )


def relational(threshold: float) -> Relational:
    """Return RFC's gate."""
    return Relational(thresholds=(threshold,), order=2, warmup=2)


def relational_at(evaluator: Evaluator, budget: int) -> Relational:
    """Return RFC's gate at the threshold whose NFC comes closest to `budget`, by bisection."""

    def rfc(threshold: float) -> Policy:
        return policy(relational(threshold), Observed())

    return relational(threshold_for(budget, rfc, evaluator, count=PROBED, runs=PROBES, slack=SLACK))


def rows(evaluator: Evaluator, advance: Any) -> Iterator[tuple[int, str, str, Outcome]]:
    """Yield (budget, gate, forecast, outcome)."""
    for budget in BUDGETS:
        gates: dict[str, Gate] = {
            "uniform": Interval(interval=INTERVALS[budget], warmup=2),
            "RCS": relational_at(evaluator, budget),
        }
        for gate_name, gate in gates.items():
            for name, magnitude in MAGNITUDES.items():
                advance(note=f"NFC {budget}, {gate_name}, {name}")
                yield budget, gate_name, name, evaluator(policy(gate, magnitude))


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    requests = unseen(None, args.samples)
    lines = [
        "| batch | budget | gate | forecast | NFC | PSNR dB |\n",
        "| ---: | ---: | --- | --- | ---: | ---: |\n",
    ]
    for batch in BATCHES:
        evaluator = Evaluator(open_renderer(args.model, batch), requests)
        with stage(f"batch {batch}", len(BUDGETS) * 4) as advance:
            for budget, gate, name, outcome in rows(evaluator, advance):
                lines.append(
                    f"| {batch} | {budget} | {gate} | {name} | {outcome.nfc:.2f} | {outcome.psnr:.2f} |\n"
                )
    write_text(args.out / "ablation.md", "".join(lines))


if __name__ == "__main__":
    main()
