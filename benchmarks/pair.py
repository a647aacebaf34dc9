"""Two policies in turns, many times: which takes less time, and how sure that is.

    cachesmith fit examples/fashion_dit/model --method hyca --set budget=14 --guidance-scale 1.5 \\
        --prompts examples/fashion_dit/prompts.jsonl --out hyca.policy.safetensors
    OMP_NUM_THREADS=1 python benchmarks/pair.py --profile 3.7x --against hyca.policy.safetensors \\
        --out benchmarks/fashion_dit

Medians of a few runs, as in `peers.md`, tell methods apart that differ by 2 % or more. Here every pair of runs is a
ratio, and who is first changes from pair to pair. Writes `pair.md`.
"""

import argparse
import random
from functools import partial
from pathlib import Path
from statistics import median

from demo_model import MODEL, STEPS, open_renderer, unseen

from cachesmith.commands.output import write_text
from cachesmith.policies import Policy, load
from cachesmith.progress import stage
from cachesmith.runtime import apply
from cachesmith.sampling.timing import elapsed, machine

SAMPLES = 8
WARM_UP = 2
DRAWS = 2000
"""Bootstrap samples of an interval."""


def interval(ratios: list[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median."""
    chooser = random.Random(0)
    medians = sorted(median(chooser.choices(ratios, k=len(ratios))) for _ in range(DRAWS))
    return medians[DRAWS // 40], medians[-DRAWS // 40]


def described(name: str, seconds: list[float], nfc: float) -> str:
    """Return a row of the table."""
    return f"| {name} | {nfc:.2f} | {median(seconds):.3f} | {min(seconds):.3f} |\n"


def main() -> None:
    """Run the pairs and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--policy", type=Path, default=Path("examples/fashion_dit/fashion.policy.safetensors")
    )
    parser.add_argument("--profile", required=True)
    parser.add_argument("--against", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    renderer, ours, other = open_renderer(MODEL, SAMPLES), load(args.policy), load(args.against)
    requests = unseen(ours, SAMPLES)
    nfc: dict[str, float] = {}

    def timed(policy: Policy, profile: str | None) -> float:
        with apply(renderer.pipe, policy, profile) as session:
            seconds = elapsed(partial(renderer, requests), renderer.pipe.device)
        nfc[policy.id] = session.stats.nfc
        return seconds

    runs = [partial(timed, ours, args.profile), partial(timed, other, None)]
    seconds: list[list[float]] = [[], []]
    with stage("pairs", args.pairs + WARM_UP) as advance:
        for number in range(args.pairs + WARM_UP):
            for which in (0, 1) if number % 2 else (1, 0):
                seconds[which].append(runs[which]())
            advance(1)
    mine, its = (each[WARM_UP:] for each in seconds)
    ratios = [a / b for a, b in zip(mine, its, strict=True)]
    low, high = interval(ratios)
    place = machine(renderer.pipe.device)
    text = (
        f"`{MODEL}`, {STEPS} steps, {SAMPLES} samples a run, {args.pairs} pairs of runs, on {place['device']} "
        f"({place['threads']} threads), torch {place['torch']}.\n\n"
        "| policy | NFC | median, s | fastest, s |\n| --- | ---: | ---: | ---: |\n"
        + described(f"{ours.document.name} {args.profile} ({ours.id[:6]})", mine, nfc[ours.id])
        + described(f"{other.document.name} ({other.id[:6]})", its, nfc[other.id])
        + f"\nRatio of the first's time to the second's: {median(ratios):.3f} ({low:.3f} to {high:.3f}, 95 %).\n"
    )
    write_text(args.out / "pair.md", text)


if __name__ == "__main__":
    main()
