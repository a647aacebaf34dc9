"""What one forecast step on modules consists of: for each part of the transformer, operations, bytes and milliseconds.

    python benchmarks/step_parts.py --policy examples/fashion_dit/fashion.policy.safetensors

Bytes are those of every operation's operands and result: what has to move if nothing stays in a cache. Milliseconds are
the operations' own, the least of the forecast steps of a run, on one thread; Python between them is *in between*.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from demo_model import BATCH, GUIDANCE, MODEL, open_renderer, unseen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cachesmith.policies import Policy, load, preset
from cachesmith.runtime import Session, apply
from cachesmith.runtime.hooks.patch import patched
from cachesmith.sampling.render import Renderer

STEPS = 12
"""Enough for two steps of warm-up and some forecasts."""

VIEWS = {
    "view",
    "_unsafe_view",
    "slice",
    "select",
    "expand",
    "unsqueeze",
    "transpose",
    "t",
    "permute",
    "detach",
    "alias",
}
NORM = "norm and modulation"
PARTS = {"norm1": NORM, "norm2": NORM, "norm3": NORM, "attn1": "attention", "ff": "MLP", "pos_embed": "embedding"} | {
    "proj_out_1": "tail", "proj_out_2": "tail",
}  # fmt: skip
REST = "gates, residuals, unpatching"


class Parts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up operations, bytes and seconds by the part that is being computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stack, self.steps = [REST], list[dict[str, list[float]]]()
        self.counts: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        begun = perf_counter()
        result = func(*args, **(kwargs or {}))
        count = self.counts[self.stack[-1]]
        count[2] += perf_counter() - begun
        if func._schema.name.removeprefix("aten::") not in VIEWS:
            count[0] += 1
            count[1] += sum(t.numel() * t.element_size() for t in tensors((args, kwargs, result)))
        return result


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors([*value.values()])
    elif isinstance(value, tuple | list):
        for each in value:
            yield from tensors(each)


@contextmanager
def named(owner: Any, name: str, part: str, parts: Parts) -> Iterator[None]:
    """Count what a method does as a part's."""
    method: Callable[..., Any] = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        parts.stack.append(part)
        try:
            return method(*args, **kwargs)
        finally:
            parts.stack.pop()

    with patched(owner, name, counted):
        yield


def step_of(renderer: Any, requests: Any, policy: Policy | None) -> dict[str, list[float]]:
    """Operations, bytes and seconds of a forecast step (of a computed one without a policy), by part."""
    parts, transformer = Parts(), renderer.pipe.transformer
    with ExitStack() as stack:
        for path, module in transformer.named_modules():
            if (part := PARTS.get(path.rsplit(".", 1)[-1])) is not None:
                stack.enter_context(named(module, "forward", part, parts))
        session: Session | None = stack.enter_context(apply(renderer.pipe, policy)) if policy else None
        if session is not None:
            for method in ("answer", "observe", "end", "begin"):
                stack.enter_context(named(session, method, f"cachesmith: {method}", parts))
        plain = transformer.forward

        def step(*args: Any, **kwargs: Any) -> Any:
            parts.counts.clear()
            begun = perf_counter()
            with parts:
                result = plain(*args, **kwargs)
            whole = perf_counter() - begun
            counts = {name: [*count] for name, count in parts.counts.items()}
            counts["in between"] = [0.0, 0.0, whole - sum(count[2] for count in counts.values())]
            if session is None or not session.stats.trace or session.stats.trace[-1].decision == "F":
                parts.steps.append(counts)
            return result

        stack.enter_context(patched(transformer, "forward", step))
        renderer(requests)
    names = {name for counts in parts.steps for name in counts}
    zero = [0.0, 0.0, 0.0]
    return {n: [min(counts.get(n, zero)[i] for counts in parts.steps) for i in range(3)] for n in names}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--policy", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    requests = unseen(load(args.policy), BATCH)
    renderer = Renderer(open_renderer(args.model).pipe, STEPS, BATCH, guidance_scale=GUIDANCE)
    steps = {
        "computed": step_of(renderer, requests, None),
        "fora": step_of(renderer, requests, preset("fora", interval=7, warmup=2)),
        "taylorseer": step_of(renderer, requests, preset("taylorseer", interval=7, order=2)),
        "rfc": step_of(renderer, requests, preset("rfc", order=2)),
    }
    names = sorted({name for counts in steps.values() for name in counts})
    print("| operations, MiB, ms of a step | " + " | ".join(steps) + " |\n| --- |" + " ---: |" * len(steps))
    for name in [*names, "all"]:
        cells = []
        for counts in steps.values():
            rows = counts.values() if name == "all" else [counts.get(name, [0.0, 0.0, 0.0])]
            operations, size, seconds = (sum(row[i] for row in rows) for i in range(3))
            cells.append(
                f"{operations:.0f}, {size / 2**20:.1f}, {seconds * 1e3:.2f}" if operations or seconds else ""
            )
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
