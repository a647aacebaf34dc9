"""All known caches side by side on one model: this project's policies, diffusers', cache-dit's, and fewer steps.

    pip install 'cachesmith[bench]'
    python benchmarks/peers.py examples/fashion_dit/model --prompts examples/fashion_dit/prompts.jsonl \\
        --policy examples/fashion_dit/fashion.policy.safetensors --guidance-scale 1.5 --out benchmarks/fashion_dit

One process, the same pipeline, prompts, seeds and batches for all; pictures are compared with the uncached ones of the
pipeline's own sampler. Work is counted alike for all: multiply-adds of the blocks' linear layers divided by those of
one uncached step, which is block executions / blocks where whole blocks are skipped. NFC is the same, but for this
project's runtime, which counts block executions / blocks itself. Thresholds are set to the budget by bisection on the
requests of the screening. Every setting is screened on a few samples; each method's best are measured on all, and
timed in turns. Writes `peers.json`, `peers.md` and `peers.png`; `peers.jsonl` and `fitted-*` keep what is done but the
times, so that the same command goes on after an interruption. With `--add`, rows that `peers.json` already has and this
run does not measure stay as they are; rows that are new then have no times, since only those of one run compare:
`--times` takes those of all rows that the tables show anew, and measures nothing else.
"""

import argparse
import importlib
import json
import random
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from contest.contestant import Course, Entry, named
from contest.drawing import draw
from contest.journal import Journal
from contest.ours import CALIBRATED
from contest.race import Race, Result
from contest.tables import best, report
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from rich.console import Console

from cachesmith.commands.output import write_text
from cachesmith.files import replacing
from cachesmith.policies import CachesmithError, load
from cachesmith.progress import stage
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import heldout_part, read_prompts, requests, requests_digest
from cachesmith.sampling.timing import machine

FAMILIES = ("samplers", "controls", "ours", "of_diffusers", "of_cache_dit")
UNUSED = 1_000_000
"""First seed where there is no calibration that could have used it."""
TUNING = 16
"""Samples that MagCache and fitted methods are calibrated on, with seeds of their own."""


def entries(course: Course, families: tuple[str, ...], only: str | None) -> Iterator[Entry]:
    """Yield everybody; `only` keeps those whose name holds one of its comma-separated parts."""
    wanted = only.split(",") if only else [""]
    for family in families:
        for entry in importlib.import_module(f"contest.{family}").entries(course):
            if any(part in entry.name for part in wanted):
                yield entry


def course(args: argparse.Namespace) -> Course:
    """Load the pipeline and settle what is sampled; the policy's own prompts and seeds are not used."""
    pipe: Any = DiffusionPipeline.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).to(
        args.device
    )
    pipe.set_progress_bar_config(disable=True)
    policy = load(args.policy) if args.policy else None
    common = dict(args.call)
    if args.guidance_scale is not None:
        common["guidance_scale"] = args.guidance_scale
    record = policy.document.calibration if policy else None
    prompts, first = read_prompts(args.prompts), record.unseen_seed if record else UNUSED
    heldout = heldout_part(prompts, record)
    others = [prompt for prompt in prompts if prompt not in heldout] or prompts
    others = random.Random(0).sample(others, len(others))  # files are often sorted by topic
    return Course(
        Renderer(pipe, args.steps, args.batch, **common),
        requests(heldout, args.samples, first),
        requests(others, TUNING, first + 500_000),
        tuple(args.budgets),
        policy,
        args.screen,
    )


def conditions(args: argparse.Namespace, run: Course) -> dict[str, Any]:
    """Return what a reader needs to judge and repeat the figures."""
    return {
        "model": args.model,
        "pipeline": type(run.renderer.pipe).__name__,
        "sampler": type(run.renderer.pipe.scheduler).__name__,
        "policy": None if run.policy is None else run.policy.id,
        "steps": run.steps,
        "samples": len(run.requests),
        "screened": len(run.screen),
        "seeds": [run.requests[0].seed, run.requests[-1].seed],
        "prompts": requests_digest(run.requests),
        "batch": run.renderer.batch,
        "arguments": run.renderer.common,
        "dtype": args.dtype,
        "budgets": list(run.budgets),
        "lpips": args.lpips is not None,
        "repeats": args.repeats,
        "machine": machine(run.renderer.pipe.device),
        "versions": {name: version(name) for name in ("diffusers", "cache-dit")},
    }


def said(facts: dict[str, Any]) -> str:
    """Return the conditions as a paragraph."""
    place, tools = facts["machine"], facts["versions"]
    given = json.dumps(facts["arguments"])
    return (
        f"{facts['pipeline']} `{facts['model']}`, {facts['steps']} steps of {facts['sampler']}, arguments "
        f"`{given}`, {facts['dtype']}, on {place['device']} ({place['threads']} threads), torch {place['torch']}, "
        f"diffusers {tools['diffusers']}, cache-dit {tools['cache-dit']}. {facts['samples']} samples; "
        f"{facts['screened']} for settings that are no method's best, and for the times, which are medians of "
        f"{facts['repeats']} interleaved runs. A setting counts for a budget if its NFC exceeds it by at most 0.3.\n"
    )


def earlier(path: Path, fixed: dict[str, Any]) -> dict[str, Any]:
    """What a run before has written. Raises `CachesmithError` where that was under other conditions."""
    written: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if {name: value for name, value in written["conditions"].items() if name in fixed} != fixed:
        raise CachesmithError(f"{path} was made under other conditions; leave --add and --times out")
    return written


def add_earlier(written: dict[str, Any], facts: dict[str, Any], results: list[Result]) -> None:
    """Add the rows that a run before has written and this one has not measured; the policy they are about stays, too.

    The profiles of a policy are replaced together.
    """
    measured = {result.name for result in results}
    anew = any(result.family == CALIBRATED for result in results)
    rows = (Result(**row) for row in written["rows"])
    results += [r for r in rows if r.name not in measured and not (anew and r.family == CALIBRATED)]
    if not anew:
        facts["policy"] = written["conditions"]["policy"]


def timed_anew(written: dict[str, Any], race: Race, listed: list[Entry], repeats: int) -> list[Result]:
    """The rows of a run before, and the times of those that its tables show."""
    results = [replace(Result(**row), seconds=None) for row in written["rows"]]
    names = shown(results, race.course.budgets)
    found = {name: named(listed, name) for name in names}
    race.entered |= {name: contestant for name, contestant in found.items() if contestant is not None}
    with stage("time", len(race.entered) * repeats) as advance:
        return race.time(results, names, repeats, lambda name: advance(note=name))


def shown(results: list[Result], budgets: tuple[int, ...]) -> set[str]:
    """Names that the budgets' tables show, uncached, and the policy's profiles: a screening is no choice among them."""
    found = {result.name for budget in budgets for result in best(results, budget)}
    return {"uncached"} | found | {result.name for result in results if result.family == CALIBRATED}


def write(folder: Path, facts: dict[str, Any], results: list[Result]) -> None:
    """Write the tables and the figure."""
    rows = [asdict(result) for result in results]
    write_text(folder / "peers.json", json.dumps({"conditions": facts, "rows": rows}, indent=1))
    write_text(folder / "peers.md", report(results, facts["budgets"], said(facts)))
    with replacing(folder / "peers.png") as part:
        draw(results, facts["budgets"], part)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--policy", type=Path)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--call", type=_pair, action="append", default=[], metavar="KEY=JSON")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument(
        "--screen", type=int, default=16, help="samples for every setting; the best ones are measured on all"
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--budgets", type=int, nargs="+", default=[8, 10, 14])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quality-only", action="store_true", help="measure no times")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--only", metavar="TEXT,TEXT", help="only settings whose name holds one of these")
    parser.add_argument(
        "--add", action="store_true", help="keep the other rows of peers.json; measures no times"
    )
    parser.add_argument("--times", action="store_true", help="measure times alone, of the rows of peers.json")
    parser.add_argument("--lpips", type=Path, metavar="FILE", help="what benchmarks/fetch_lpips.py wrote")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def _pair(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    return key, json.loads(value)


def main() -> None:
    """Run everybody and write the tables."""
    args = parse()
    warnings.filterwarnings("ignore", message="cachesmith computed a step")
    diffusers_logging.set_verbosity_error()
    args.out.mkdir(parents=True, exist_ok=True)
    run = course(args)
    facts = json.loads(json.dumps(conditions(args, run)))
    lpips = None
    if args.lpips is not None:
        from cachesmith.sampling.lpips import load_lpips

        lpips = load_lpips(args.lpips)
    # a recalibrated policy has rows of its own, the others' stay; times are taken anew
    fixed = {name: value for name, value in facts.items() if name not in ("policy", "repeats")}
    digest = sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()
    run = replace(run, kept=args.out / f"fitted-{digest[:12]}")
    race = Race(run, Journal(args.out / "peers.jsonl", fixed), lpips)
    listed = list(entries(run, tuple(args.families), args.only))
    before = earlier(args.out / "peers.json", fixed) if args.add or args.times else {}
    if args.times:
        facts["policy"] = before["conditions"]["policy"]
        write(args.out, facts, timed_anew(before, race, listed, args.repeats))
        return
    with stage("quality", len(listed)) as advance:
        results = race.run(listed, lambda name: advance(note=name))
    with stage("best settings", len(shown(results, run.budgets))) as advance:
        results = race.confirm(results, partial(shown, budgets=run.budgets), lambda name: advance(note=name))
    if args.add:
        add_earlier(before, facts, results)
    write(args.out, facts, results)
    if not args.quality_only and not args.add:
        names = shown(results, run.budgets)
        with stage("time", len(names) * args.repeats) as advance:
            results = race.time(results, names, args.repeats, lambda name: advance(note=name))
        write(args.out, facts, results)
    Console(stderr=True).print(f"{args.out / 'peers.md'}: {len(results)} settings")


if __name__ == "__main__":
    main()
