"""Calibrated policy against the published methods it grew from, at equal numbers of full computations.

    python benchmarks/front.py --policy examples/fashion_dit/fashion.policy.safetensors --out benchmarks/fashion_dit

For each budget (7, 8, 10, 11, 14 of 50 steps): FORA and TaylorSeer at the interval that meets it, RFC with its
threshold set by bisection until NFC is within 0.3, and the policy's slowest profile within that budget. Of
TaylorSeer's orders 1 to 3 the best is kept. Seeds that calibration never saw, one process, interleaved repeats. Writes
`front.json` and `front.md`.
"""

import argparse
import json
import platform
from collections.abc import Iterator
from functools import partial
from operator import itemgetter
from pathlib import Path

import torch
from demo_model import INTERVALS, MODEL, SLACK, open_renderer, profile_within, unseen
from rich.console import Console
from rich.progress import track

from cachesmith.calibrate.methods.threshold import threshold_for
from cachesmith.commands.output import write_text
from cachesmith.policies import Policy, load, preset
from cachesmith.progress import bars
from cachesmith.sampling.bench import Contestant, bench, bench_lines, markdown
from cachesmith.sampling.evaluate import Evaluator
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request

RFC_ORDER = 2
"""RFC's Taylor order on DiT in the paper."""


def published(evaluator: Evaluator, budget: int) -> Iterator[tuple[str, str, Policy]]:
    """Yield (method, variant, policy) at one budget."""
    interval = INTERVALS[budget]
    yield "fora", "", preset("fora", interval=interval, warmup=2)
    for order in (1, 2, 3):
        yield "taylorseer", f" order {order}", preset("taylorseer", interval=interval, order=order)
    rfc = partial(preset, "rfc", order=RFC_ORDER)
    tau = threshold_for(budget, lambda tau: rfc(tau=tau), evaluator, slack=SLACK)
    yield "rfc", f" order {RFC_ORDER}", rfc(tau=tau)


def contestants(renderer: Renderer, policy: Policy, requests: list[Request]) -> dict[str, Contestant]:
    """The best variant of every method at every budget, and the policy's profile, by name."""
    evaluator = Evaluator(renderer, requests)
    entered: dict[str, Contestant] = {}
    for budget in track(INTERVALS, "variants", console=Console(stderr=True)):
        best: dict[str, tuple[float, str, Policy]] = {}
        for method, variant, candidate in published(evaluator, budget):
            decibel = evaluator(candidate).psnr
            best[method] = max(
                best.get(method, (0.0, "", candidate)), (decibel, variant, candidate), key=itemgetter(0)
            )
        for method, (_, variant, candidate) in best.items():
            entered[f"{budget}: {method}{variant}"] = candidate, None
        entered[f"{budget}: calibrated"] = policy, profile_within(policy, budget)
    return entered


def main() -> None:
    """Run the comparison and write its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    renderer, policy = open_renderer(args.model), load(args.policy)
    requests = unseen(policy, args.samples)
    entered = contestants(renderer, policy, requests)
    with bars() as progress:
        rows = bench(renderer, entered, requests, args.repeats, progress=progress)
    versions = {"torch": torch.__version__, "python": platform.python_version(), "cpu": platform.processor()}
    result = {
        "policy": policy.id,
        "samples": args.samples,
        "versions": versions,
        "rows": [r.as_json() for r in rows],
    }
    write_text(args.out / "front.json", json.dumps(result, indent=1))
    write_text(args.out / "front.md", markdown(rows))
    for line in bench_lines(rows):
        print(*line, sep="  ")


if __name__ == "__main__":
    main()
