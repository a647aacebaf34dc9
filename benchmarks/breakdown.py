"""Where the time of a cached run goes, at `stack` and at `module` granularity.

    python benchmarks/breakdown.py --policy examples/fashion_dit/fashion.policy.safetensors --out benchmarks/fashion_dit

One batch on the CPU, median of a few runs. *computed* is NFC times the transformer's time in an uncached step;
*forecast* and *remember* is what the session does instead and in addition; *around* is the rest of the transformer:
embedding, last projection, calls that are bypassed; *outside* are sampler, guidance and decoder. Writes `breakdown.md`.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from demo_model import BATCH, MODEL, STEPS, open_renderer, profile_within, unseen

from cachesmith.commands.output import write_text
from cachesmith.policies import Policy, load, preset
from cachesmith.progress import stage
from cachesmith.runtime import Session, apply
from cachesmith.runtime.hooks.patch import patched
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request

NFC, INTERVAL = 8, 7
PARTS = ("computed", "forecast", "remember", "around", "outside")
Spent = defaultdict[str, float]
"""Seconds by part."""


@contextmanager
def timed(owner: Any, name: str, spent: Spent, part: str) -> Iterator[None]:
    """Add up the seconds spent in a method."""
    method: Callable[..., Any] = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        begun = perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            spent[part] += perf_counter() - begun

    with patched(owner, name, watched):
        yield


def run(renderer: Renderer, requests: list[Request], session: Session | None) -> Spent:
    """Sample once and return seconds: `total`, `transformer`, `forecast`, `remember`."""
    spent: Spent = defaultdict(float)
    with ExitStack() as stack:
        stack.enter_context(timed(renderer.pipe.transformer, "forward", spent, "transformer"))
        if session is not None:
            stack.enter_context(timed(session, "answer", spent, "forecast"))
            stack.enter_context(timed(session, "observe", spent, "remember"))
        begun = perf_counter()
        renderer(requests)
        spent["total"] = perf_counter() - begun
    return spent


def medians(runs: list[Spent]) -> dict[str, float]:
    """The median of every part."""
    return {part: median(r[part] for r in runs) for part in ("total", "transformer", "forecast", "remember")}


def measure(
    renderer: Renderer, requests: list[Request], policy: Policy, profile: str | None, repeats: int
) -> tuple[dict[str, float], float]:
    """Return seconds by part, and NFC."""
    with apply(renderer.pipe, policy, profile) as session:
        run(renderer, requests, session)
        nfc = session.stats.nfc
        return medians([run(renderer, requests, session) for _ in range(repeats)]), nfc


def row(name: str, spent: dict[str, float], nfc: float, uncached: dict[str, float]) -> str:
    """One line of the table: seconds, and the share that is not what skipping promises."""
    computed = nfc * uncached["transformer"] / STEPS
    around = spent["transformer"] - spent["forecast"] - spent["remember"] - computed
    seconds = (computed, spent["forecast"], spent["remember"], around, spent["total"] - spent["transformer"])
    speedup = uncached["total"] / spent["total"]
    cells = " | ".join(f"{value:.3f}" for value in (*seconds, spent["total"]))
    return f"| {name} | {nfc:.2f} | {cells} | {speedup:.2f}x | {speedup * nfc / STEPS:.2f} |\n"


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    renderer, policy = open_renderer(args.model), load(args.policy)
    requests = unseen(policy, BATCH)
    entered: dict[str, tuple[Policy, str | None]] = {
        "calibrated (stack)": (policy, profile_within(policy, NFC)),
        "taylorseer-lite order 2 (stack)": (preset("taylorseer-lite", interval=INTERVAL, order=2), None),
        "fora (module)": (preset("fora", interval=INTERVAL, warmup=2), None),
        "taylorseer order 2 (module)": (preset("taylorseer", interval=INTERVAL, order=2), None),
        "rfc order 2 (module)": (preset("rfc", order=2), None),
    }
    head = " | ".join(PARTS)
    lines = [f"| seconds | NFC | {head} | total | speed-up | efficiency |\n", f"| --- |{' ---: |' * 9}\n"]
    with stage("runs", len(entered) + 1) as advance:
        uncached = medians([run(renderer, requests, None) for _ in range(args.repeats)])
        lines.append(row("uncached", uncached, STEPS, uncached))
        advance()
        for name, (made, profile) in entered.items():
            spent, nfc = measure(renderer, requests, made, profile, args.repeats)
            lines.append(row(name, spent, nfc, uncached))
            advance(note=name)
    write_text(args.out / "breakdown.md", "".join(lines))


if __name__ == "__main__":
    main()
