"""The runtime on one GPU: what a forecast costs, and how much of the skipping arrives.

    python benchmarks/gpu.py --model flux --out benchmarks/gpu-flux.md      # FLUX.1-dev shapes, random weights
    python benchmarks/gpu.py --model dit --out benchmarks/gpu-dit.md        # DiT-XL/2 shapes
    python benchmarks/gpu.py --model flux --device cpu --tiny               # the same code on a CPU; times mean nothing

Needs torch and diffusers. Prints, for one model in one process: the device's copy bandwidth; the bytes a forecast must
move and the time it takes, fused and plain; milliseconds of a computed and of a forecast step, torch eager and with
compiled blocks; the loop's speed-up over steps ÷ NFC; launches and waits of a forecast step.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gpu_loop import Loop
from torch import Tensor

from cachesmith.policies import (
    Fitted,
    Fixed,
    Forecaster,
    Modules,
    Observed,
    Policy,
    Profile,
    Stack,
    Taylor,
    unbound,
)
from cachesmith.policies.base import Arrays
from cachesmith.runtime import apply, block_lists, patched
from cachesmith.runtime.tensors import kernels

STEPS, NFC = 20, 6
MASK = "CCC" + "FFFFC" * 3 + "FF"
SHAPES = {"flux": (1, 4608, 3072), "dit": (2, 256, 1152)}
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


class Forecast(NamedTuple):
    """One kind of forecast: what it reads beside the output it writes, in tensors, and how it is computed."""

    name: str
    reads: int
    compute: Callable[[], Tensor]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SHAPES, default="flux")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tiny", action="store_true", help="toys of the same shape")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out compiled blocks, which take a minute"
    )
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def milliseconds(run: Callable[[], object], device: torch.device, repeats: int = 20) -> float:
    """The median time of `run` on the device, after three calls that are not counted."""
    times = []
    for repeat in range(repeats + 3):
        _wait(device)
        begun = time.perf_counter()
        run()
        _wait(device)
        if repeat >= 3:
            times.append((time.perf_counter() - begun) * 1000)
    return statistics.median(times)


def bandwidth(device: torch.device, tiny: bool) -> float:
    """Bytes a second of a copy on the device, read and written."""
    source = torch.ones(2**20 if tiny else 2**28, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source), device) * 1000


def forecasts(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Iterator[Forecast]:
    """The forecasts that the runtime makes, on features of the model's shape."""
    *features, now, before = (torch.randn(shape, device=device, dtype=dtype) for _ in range(8))
    rows = [torch.rand(shape[-1], device=device) for _ in range(7)]
    taylor: Any = list(zip((2.5, -2.0, 0.5), features[:3], strict=True))
    fitted: Any = list(zip(rows, (now, *features[:6]), strict=True))
    scale = torch.ones(shape[0], device=device)
    yield Forecast("Taylor 2, module", 3, lambda: kernels.weighted_sum(taylor))
    yield Forecast("Taylor 2, stack", 4, lambda: kernels.weighted_sum(taylor, now))
    yield Forecast("fitted per channel with inputs, stack", 7, lambda: kernels.weighted_sum(fitted, now))
    yield Forecast(
        "RFE over Taylor 2, module",
        2 * 3 + 3,
        lambda: kernels.relational_step(taylor, features[0], (now, before), scale),
    )


def forecast_lines(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Iterator[str]:
    """The table of forecasts, fused and plain."""
    copy = bandwidth(device, args.tiny)
    shape = (1, 64, 32) if args.tiny else SHAPES[args.model]
    yield f"Copy bandwidth: {copy / 1e9:,.0f} GB/s. Features: {list(shape)}, {args.dtype}.\n\n"
    yield "| forecast | MB moved | fused, ms | share of the copy bandwidth | plain, ms |\n"
    yield "| --- | ---: | ---: | ---: | ---: |\n"
    size = int(np.prod(shape)) * dtype.itemsize
    for forecast in forecasts(shape, device, dtype):
        moved = size * (forecast.reads + 1)
        quick = milliseconds(forecast.compute, device)
        with patched(kernels, "fusable", lambda _: False):
            plain = milliseconds(forecast.compute, device)
        share = moved / (quick / 1000) / copy
        yield f"| {forecast.name} | {moved / 1e6:,.1f} | {quick:.3f} | {share:.2f} | {plain:.3f} |\n"


def policies(loop: Loop) -> Iterator[tuple[str, Policy]]:
    """A fitted stack, and the published methods on modules, on one schedule."""
    gate = Fixed(mask=MASK)
    streams, channels = _stack_shape(loop)
    line = np.zeros((streams, STEPS, 3, channels), np.float32)
    line[:, :, 0], line[:, :, 1] = 1.5, -0.5
    arrays: Arrays = {"w": line, "ids": np.tile(np.arange(channels, dtype=np.int32), (streams, 1))}
    fitted = Forecaster(rows=Fitted(weights="w", ids="ids"))
    yield "fitted, stack", unbound(Profile(units=Stack(), gate=gate, forecaster=fitted), arrays)
    taylor = Forecaster(rows=Taylor(order=2))
    yield "Taylor 2, modules", unbound(Profile(units=Modules(), gate=gate, forecaster=taylor))
    rfe = Forecaster(rows=Taylor(order=2), magnitude=Observed())
    yield "RFE over Taylor 2, modules", unbound(Profile(units=Modules(), gate=gate, forecaster=rfe))


def loop_lines(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Iterator[str]:
    """The table of loops: each policy with eager and with compiled blocks."""
    loop = Loop(args.model, args.tiny, str(device), dtype)
    yield (
        f"\n{STEPS} steps, NFC {NFC}. Speed-up is measured seconds; efficiency is speed-up ÷ (steps ÷ NFC).\n\n"
        "| blocks | policy | computed step, ms | forecast step, ms | loop, s | speed-up | efficiency | launches "
        "| waits |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    )
    for blocks in ("eager",) if args.no_compile else ("eager", "compiled"):
        if blocks == "compiled":
            for _, block in block_lists(loop.transformer):
                block.compile()
        uncached = _seconds(loop)
        yield f"| {blocks} | uncached | {1000 * uncached / STEPS:.2f} | | {uncached:.3f} | 1 | | | |\n"
        for name, policy in policies(loop):
            if blocks == "compiled" and "modules" in name:
                continue  # single modules cannot be cached inside compiled blocks
            yield _policy_line(loop, blocks, name, policy, uncached)


def _policy_line(loop: Loop, blocks: str, name: str, policy: Policy, uncached: float) -> str:
    with apply(loop.transformer, policy, scheduler=loop.scheduler):
        seconds = _seconds(loop)
        computed, forecast = (
            1000
            * statistics.median(s for s, letter in zip(loop.seconds, MASK, strict=True) if letter == which)
            for which in "CF"
        )
        launches, waits = _launches(loop)
    speedup = uncached / seconds
    return (
        f"| {blocks} | {name} | {computed:.2f} | {forecast:.2f} | {seconds:.3f} | {speedup:.2f} | "
        f"{speedup * NFC / STEPS:.3f} | {launches} | {waits} |\n"
    )


def _seconds(loop: Loop) -> float:
    loop(num_inference_steps=STEPS)
    times = []
    for _ in range(3):
        _wait(loop.device)
        begun = time.perf_counter()
        loop(num_inference_steps=STEPS)
        _wait(loop.device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def _launches(loop: Loop) -> tuple[str, str]:
    """Kernels launched, and times the host waited, a forecast step: what forecast steps add to computed ones."""
    if loop.device.type != "cuda":
        return "", ""
    counts = []
    for stop in (MASK.rindex("C") + 1, STEPS):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            loop(num_inference_steps=STEPS, stop=stop)
        events = {event.key: event.count for event in profile.key_averages()}
        kernel = sum(count for key, count in events.items() if "Launch" in key)
        counts.append((kernel, sum(events.get(name, 0) for name in WAITS)))
    forecasts_after = STEPS - MASK.rindex("C") - 1
    launches, waits = ((b - a) / forecasts_after for a, b in zip(*counts, strict=True))
    return f"{launches:.0f}", f"{waits:.1f}"


def _stack_shape(loop: Loop) -> tuple[int, int]:
    config = loop.transformer.config
    return 1, config.num_attention_heads * config.attention_head_dim


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure, print and write."""
    args = parse()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    lines = [f"{args.model}, {card}, torch {torch.__version__}, Python {platform.python_version()}.\n\n"]
    print(lines[0], end="", flush=True)
    with torch.no_grad():
        for table in (forecast_lines, loop_lines):
            for line in table(args, device, dtype):
                print(line, end="", flush=True)
                lines.append(line)
    if args.out is not None:
        args.out.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
