"""Calibrated policy against the published methods it grew from, at equal numbers of full computations.

    python benchmarks/front.py --policy examples/fashion_dit/fashion.policy.safetensors --out benchmarks/fashion_dit

For each budget (7, 8, 10, 11, 14 of 50 steps): FORA and TaylorSeer at the interval that meets it, RFC with its
threshold set by bisection so that NFC is within 0.3, and the policy's slowest profile within that budget. Of
TaylorSeer's orders 1 to 3 the best is kept. Held-out labels and seeds, one process, interleaved repeats. Writes
`front.json` and `front.md`.
"""

import argparse
import json
import platform
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from rich.console import Console
from rich.progress import track

from cachesmith.calibrate.bench import Contestant, bench, cells, markdown, play
from cachesmith.calibrate.metrics import psnr
from cachesmith.calibrate.prompts import Request
from cachesmith.calibrate.render import Renderer
from cachesmith.policies import Policy, load, preset
from cachesmith.progress import bars
from cachesmith.runtime import apply

STEPS, GUIDANCE = 50, 1.5
RFC_ORDER = 2
"""RFC's Taylor order on DiT in the paper."""
INTERVALS = {7: 9, 8: 7, 10: 6, 11: 5, 14: 4}
"""Full computations of 50 -> interval, with two steps of warm-up, as in the tables of RFC and TaylorSeer."""


def held_out(policy: Policy, samples: int) -> list[Request]:
    """Labels in turn, with seeds that calibration never saw."""
    record = policy.document.calibration
    first = 1 + max((*record.fitting_seeds, *record.heldout_seeds)) if record else 10**6
    return [Request({"class_labels": i % 10}, first + i) for i in range(samples)]


def full_computations(renderer: Renderer, policy: Policy, requests: list[Request]) -> float:
    """NFC of a policy on `requests`."""
    with apply(renderer.pipe, policy) as session:
        renderer(requests)
    return session.stats.nfc


def rfc_at(renderer: Renderer, requests: list[Request], budget: int, order: int) -> Policy | None:
    """RFC with the threshold that gives `budget` full computations (within 0.3), or None if none does."""
    low, high = 1e-3, 10.0
    for _ in range(12):
        tau = (low * high) ** 0.5
        policy = preset("rfc", tau=tau, order=order)
        nfc = full_computations(renderer, policy, requests)
        if abs(nfc - budget) <= 0.3:
            return policy
        low, high = (tau, high) if nfc > budget else (low, tau)
    return None


def published(renderer: Renderer, requests: list[Request], budget: int) -> Iterator[tuple[str, str, Policy]]:
    """Yield (method, variant, policy) at one budget."""
    interval = INTERVALS[budget]
    yield "fora", "", preset("fora", interval=interval, warmup=2)
    for order in (1, 2, 3):
        yield "taylorseer", f" order {order}", preset("taylorseer", interval=interval, order=order)
    rfc = rfc_at(renderer, requests[: renderer.batch], budget, RFC_ORDER)
    if rfc is not None:
        yield "rfc", f" order {RFC_ORDER}", rfc


def profile_within(policy: Policy, budget: int) -> str:
    """The policy's slowest profile that keeps to `budget` full computations."""
    costs = {name: profile.nfc or STEPS for name, profile in policy.document.profiles.items()}
    return max((name for name, nfc in costs.items() if nfc <= budget), key=lambda name: costs[name])


def contestants(renderer: Renderer, policy: Policy, requests: list[Request]) -> dict[str, Contestant]:
    """The best variant of every method at every budget, and the policy's profile, by name."""
    reference, _ = play(renderer, None, requests)
    entered: dict[str, Contestant] = {}
    for budget in track(INTERVALS, "variants", console=Console(stderr=True)):
        best: dict[str, tuple[float, str, Policy]] = {}
        for method, variant, candidate in published(renderer, requests, budget):
            pictures, _ = play(renderer, (candidate, None), requests)
            decibel = float(psnr(reference.images, pictures.images).mean())
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
    parser.add_argument("--model", default="examples/fashion_dit/model")
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    pipe: Any = DiffusionPipeline.from_pretrained(args.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    renderer = Renderer(pipe, STEPS, batch=32, guidance_scale=GUIDANCE)
    policy = load(args.policy)
    requests = held_out(policy, args.samples)
    entered = contestants(renderer, policy, requests)
    with bars() as progress:
        rows = bench(renderer, entered, requests, args.repeats, progress=progress)
    versions = {"torch": torch.__version__, "python": platform.python_version(), "cpu": platform.processor()}
    args.out.mkdir(parents=True, exist_ok=True)
    result = {
        "policy": policy.id,
        "samples": args.samples,
        "versions": versions,
        "rows": [r.as_json() for r in rows],
    }
    (args.out / "front.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    (args.out / "front.md").write_text(markdown(rows), encoding="utf-8")
    for row in rows:
        print(*cells(row), sep="  ")


if __name__ == "__main__":
    main()
