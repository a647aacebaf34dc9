"""Engines and policies on one GPU: time of a computed and of a forecast step, and how much of the skipping arrives.

    python benchmarks/gpu_engines.py --out benchmarks/gpu_engines.md   # DiT-XL/2, FLUX.1-dev shapes, random weights
    python benchmarks/gpu_engines.py --device cpu --tiny               # the same code on a CPU; times mean nothing

Every row is a process of its own: it builds the model, exports it where engines compute, warms up, and times one
uncached and one cached run. Rows whose package is not installed, or does not know this device, say so; any other row
that fails makes the exit status 1. `efficiency` is the measured speed-up of the loop divided by steps ÷ NFC. Memory is
what the device holds after the run, weights freed where engines replace them.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gpu_loop import Loop
from rich.console import Console
from torch import nn

from cachesmith.commands.output import write_text
from cachesmith.export import ExportConfig, export_bundle
from cachesmith.policies import Policy, preset
from cachesmith.policies.bundle.manifest import Range
from cachesmith.runtime import apply, open_bundle

ENGINES = ("torch", "compile", "onnxruntime", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx")
FEWEST = 8
"""Steps: at an interval of 5, fewer leave too few forecasts to time."""


def repeated_blocks(transformer: nn.Module) -> list[nn.Module]:
    """Every transformer block; diffusers' `compile_repeated_blocks` does not know DiT's."""
    return [block for child in transformer.children() if isinstance(child, nn.ModuleList) for block in child]


def measure(kind: str, engine: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row: an uncached and a cached run by one engine."""
    dtype = getattr(torch, args.dtype)
    pipe = Loop(kind, args.tiny, args.device, dtype)
    options: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if engine == "compile":
            for block in repeated_blocks(pipe.transformer):
                block.compile()
        elif engine != "torch":
            options = {"bundle": _export(pipe, engine, folder, args), "drop_torch_weights": True}
        policy = preset("taylorseer-lite", interval=5, order=1)
        plain = _run(pipe, preset("uncached"), args.steps, options)
        cached = _run(pipe, policy, args.steps, options)
    return {
        "model": kind,
        "engine": engine,
        "uncached ms": plain["computed"],
        "computed ms": cached["computed"],
        "forecast ms": cached["forecast"],
        "NFC": cached["nfc"],
        "speed-up": plain["total"] / cached["total"],
        "efficiency": plain["total"] / cached["total"] * cached["nfc"] / args.steps,
        "GiB": _memory(pipe.device),
    }


def _export(pipe: Loop, engine: str, folder: str, args: argparse.Namespace) -> Any:
    target = "onnxruntime" if engine.startswith("onnxruntime") else engine
    once = Range(min=1, opt=1, max=1)
    # proof on the CPU would take longer than everything else; `cachesmith export` never leaves it out
    config = ExportConfig(
        target=target,  # type: ignore[arg-type]
        requests=({"pictures": 1},),
        steps=2,
        pictures=once,
        prove=args.tiny,
        build=_build(engine),
        max_engine_gib=float("inf"),
    )
    export_bundle(pipe, preset("uncached"), folder, config)
    return open_bundle(folder, args.device, backend=engine, cuda_graphs=engine == "tensorrt" and args.graphs)


def _build(engine: str) -> Any:
    from cachesmith.export import BuildConfig

    if engine != "tensorrt-rtx" or not torch.cuda.is_available():
        return BuildConfig()
    return BuildConfig(capabilities=(".".join(map(str, torch.cuda.get_device_capability())),))


def _run(pipe: Loop, policy: Policy, steps: int, options: dict[str, Any]) -> dict[str, float]:
    """Warm up, then time one run; milliseconds per kind of step (medians) and in all."""
    with apply(pipe, policy, **options) as session:
        pipe(num_inference_steps=steps)
        pipe(num_inference_steps=steps)
        decisions = [trace.decision for trace in session.stats.trace[-steps:]]
    times = [1000 * s for s in pipe.seconds]
    by_kind = {letter: [t for t, d in zip(times, decisions, strict=True) if d == letter] for letter in "CF"}
    return {
        "computed": statistics.median(by_kind["C"]),
        "forecast": statistics.median(by_kind["F"]) if by_kind["F"] else float("nan"),
        "total": sum(times),
        "nfc": session.stats.nfc,
    }


def _memory(device: torch.device) -> float:
    if device.type != "cuda":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / 2**30


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every model and engine in a process of its own."""
    for kind in args.models.split(","):
        for engine in args.engines.split(","):
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--row", kind, engine],
                capture_output=True,
                text=True,
                check=False,
            )
            lines = done.stdout.strip().splitlines()
            if done.returncode == 0 and lines:
                yield json.loads(lines[-1])
            else:
                reason = (done.stderr.strip().splitlines() or ["no output"])[-1].split("EngineError: ")[-1]
                yield {
                    "model": kind,
                    "engine": engine,
                    "error": reason,
                    "failed": not _may_fail(engine, args.device),
                }


def _may_fail(engine: str, device: str) -> bool:
    """Whether nobody can expect this row here: its package is missing, or this device is none of its own."""
    packages = {
        "torch": "torch",
        "compile": "torch",
        "onnxruntime": "onnxruntime",
        "tensorrt-rtx": "tensorrt_rtx",
    }
    if find_spec(packages.get(engine, "tensorrt")) is None:
        return True
    if device == "cpu":
        return "tensorrt" in engine
    return engine == "tensorrt-rtx" and torch.cuda.get_device_capability() == (9, 0)  # it leaves out Hopper


def table(found: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    heads = [
        "model",
        "engine",
        "uncached ms",
        "computed ms",
        "forecast ms",
        "NFC",
        "speed-up",
        "efficiency",
        "GiB",
    ]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join(['---'] * len(heads))} |"]
    for row in found:
        cells = [row[h] if isinstance(row[h], str) else f"{row[h]:.2f}" for h in heads if h in row]
        lines.append(
            f"| {' | '.join(cells)} | {row.get('error', '')} |"
            if "error" in row
            else f"| {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="dit,flux")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dtype", help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy models")
    parser.add_argument("--graphs", action="store_true", help="CUDA graphs with tensorrt")
    parser.add_argument("--out", type=Path, help="also write the table here")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.steps < FEWEST:
        parser.error(
            f"--steps {args.steps} is below {FEWEST}; a cached run needs some forecast steps to time"
        )
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    return args


def main() -> None:
    """Print the table, and write it."""
    args = parse()
    if args.row:
        kind, engine = args.row
        print(json.dumps(measure(kind, engine, args)))
        return
    if args.device != "cpu" and not torch.cuda.is_available():
        sys.exit("this benchmark needs an NVIDIA GPU; --device cpu --tiny only exercises its code")
    found: list[dict[str, Any]] = []
    for row in rows(args):
        found.append(row)
        Console(stderr=True).print(row)
    print(table(found))
    if args.out is not None:
        gpu = torch.cuda.get_device_name() if args.device != "cpu" else "CPU"
        write_text(args.out, f"`{' '.join(sys.argv)}` on {gpu}, torch {torch.__version__}\n\n{table(found)}")
    if any(row.get("failed") for row in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
