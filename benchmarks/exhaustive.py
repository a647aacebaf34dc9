"""How far is the schedule search from the best? Every schedule of a small space, by reuse and by a line.

    python benchmarks/exhaustive.py examples/fashion_flux/model --prompts examples/fashion_flux/prompts.jsonl \\
        --samples 8 --out benchmarks/fashion_flux

20 steps, 7 of them computed, steps 0, 1, 2 and the last always: 560 schedules. Each is sampled with plain reuse of the
stack, and with the line through its last two computed outputs. Then the product's own search
(`search_shapes`) is run for each of these scores on the same samples. It is not bound to the four steps, so what it
chooses may rank before the first. Beside it: even steps with the same ends, and annealing and hill
climbing inside the space, as BudCache has them. Writes `exhaustive.md`; `exhaustive.jsonl` keeps what is done, so that
the same command goes on.
"""

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import optuna
import torch
from contest.journal import Journal
from diffusers import DiffusionPipeline
from torch import Tensor

from cachesmith.calibrate.closed_loop.batch import sample
from cachesmith.calibrate.methods.searches.moves import Losses, ScheduleSpace, anneal, climb
from cachesmith.calibrate.methods.searches.reuse import ScheduleSampler
from cachesmith.calibrate.probe import probe
from cachesmith.calibrate.schedules.drift import drift, growth, nudged
from cachesmith.calibrate.schedules.path_costs import told_by_paths
from cachesmith.calibrate.schedules.search import RunShape, search_shapes, shaped
from cachesmith.commands.output import write_text
from cachesmith.policies.schedule import computed_steps, even, from_steps
from cachesmith.progress import stage
from cachesmith.sampling.metrics import psnr
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request, read_prompts, requests, requests_digest
from cachesmith.sampling.timing import machine

ANNEALING, CLIMBING, HOT, COLD = 100, 5, 3.0, 0.003
"""Iterations, rounds, and temperatures in dB of the annealing."""

JUDGES = ("reuse", "line")

Score = Callable[[str], float]
"""Mask -> mean PSNR, dB."""


class Scores:
    """Scores of masks by every judge, remembered on disk. run: what uncached and nudged runs tell the search."""

    def __init__(self, renderer: Renderer, asked: Sequence[Request], journal: Journal):
        uncached = sample(renderer, asked)
        schedule, channels = nudged(renderer.steps), probe(renderer, asked).channels
        assert schedule is not None, "there are steps enough"

        def grown(scales: Tensor) -> Tensor:
            return growth(drift(renderer, [uncached], schedule, channels) * scales.square(), schedule)

        costs = told_by_paths(renderer.pipe.scheduler, renderer.steps, uncached.moves, grown)
        self.run = RunShape(renderer.steps, costs=costs)
        self._uncached, self._journal = uncached.images, journal
        self._samplers = {name: ScheduleSampler(renderer, asked, name == "line") for name in JUDGES}

    def __call__(self, judge: str, mask: str) -> float:
        """Mean PSNR of a mask by `judge`."""
        known = self._journal.get(judge, mask)
        if known is None:
            images = self._samplers[judge](computed_steps(mask)).images
            known = self._journal.add(judge, mask, psnr=float(psnr(self._uncached, images).mean()))
        return float(known["psnr"])


def every(space: ScheduleSpace) -> Iterator[str]:
    """Yield the masks of the space."""
    others = [step for step in range(space.steps) if step not in space.forced]
    for chosen in combinations(others, space.budget - len(space.forced)):
        yield from_steps((*space.forced, *chosen), space.steps)


def chosen(space: ScheduleSpace, run: RunShape, score: Score, trials: int) -> dict[str, str]:
    """Name -> mask of what each search chooses by `score`."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    best = search_shapes(study, space.budget, run, trials, 0, lambda schedule: score(schedule.mask))
    ours = shaped(best, space.budget, run).mask
    loss = Losses(lambda computed: -score(from_steps(computed, space.steps)))
    rng = random.Random(0)
    found = anneal(space, space.drawn(rng), loss, ANNEALING, HOT, COLD, rng)
    climb(space, found, loss, CLIMBING, rng)
    best = loss.best()
    return {
        f"cachesmith's search, {trials} trials": ours,
        "optimum along the uncached paths": shaped({"spacing": "path", "tilt": 0.0}, space.budget, run).mask,
        f"annealing and hill climbing, {len(loss.known)} evaluations": from_steps(best, space.steps),
        "even steps": even(space.steps, 0, space.steps - 1, space.budget),
    }


def table(judge: str, ranked: Sequence[float], named: dict[str, str], score: Score) -> str:
    """Return the choices by one judge: PSNR, how far from the best, and how many of the space are better."""
    lines = [
        f"## By {judge}\n\nBest {ranked[0]:.2f} dB, median {ranked[len(ranked) // 2]:.2f}, worst {ranked[-1]:.2f}.\n\n",
        "| chosen by | schedule | PSNR dB | to the best | better ones, of "
        f"{len(ranked)} |\n| --- | --- | ---: | ---: | ---: |\n",
    ]
    for name, mask in named.items():
        value = score(mask)
        better = sum(other > value for other in ranked)
        lines.append(f"| {name} | `{mask}` | {value:.2f} | {value - ranked[0]:+.2f} | {better} |\n")
    return "".join(lines)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--budget", type=int, default=7)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seed", type=int, default=5_000_000)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Sample every schedule by every judge, run the searches, and write the tables."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    pipe: Any = DiffusionPipeline.from_pretrained(args.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    renderer = Renderer(pipe, args.steps, args.samples)
    prompts = random.Random(0).sample(read_prompts(args.prompts), args.samples)
    asked = requests(prompts, args.samples, args.seed)
    space = ScheduleSpace(args.steps, args.budget, frozenset({0, 1, 2, args.steps - 1}))
    conditions = {
        "model": args.model,
        "steps": args.steps,
        "prompts": requests_digest(asked),
        "seed": args.seed,
    }
    score = Scores(renderer, asked, Journal(args.out / "exhaustive.jsonl", conditions))
    masks = list(every(space))
    parts = [said(args, len(masks), machine(pipe.device))]
    for judge in JUDGES:
        with stage(judge, len(masks)) as advance:
            values = []
            for mask in masks:
                values.append(score(judge, mask))
                advance()
        by = partial(score, judge)
        best = masks[values.index(max(values))]
        named = {"all 560" if len(masks) == 560 else "all": best, **chosen(space, score.run, by, args.trials)}
        parts.append(table(judge, sorted(values, reverse=True), named, by))
    write_text(args.out / "exhaustive.md", "\n".join(parts))


def said(args: argparse.Namespace, count: int, place: dict[str, Any]) -> str:
    """Return the conditions as a paragraph."""
    return (
        f"`{args.model}`, {args.steps} steps, {args.budget} computed, steps 0, 1, 2 and the last always: {count} "
        f"schedules of the whole stack. Mean PSNR to the uncached pictures of {args.samples} samples, seeds from "
        f"{args.seed}; float32, torch {place['torch']}.\n"
    )


if __name__ == "__main__":
    main()
