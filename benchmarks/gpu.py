"""Engines and policies on one GPU: time of a computed and of a forecast step, and how much of the skipping arrives.

    python benchmarks/gpu.py --out benchmarks/gpu.md           # DiT-XL/2 and FLUX.1-dev shapes, random weights
    python benchmarks/gpu.py --device cpu --tiny               # the same code on a CPU; times mean nothing

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
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
)
from rich.console import Console
from torch import Tensor, nn

from cachesmith.export import ExportConfig, export_bundle
from cachesmith.policies import Policy, preset
from cachesmith.policies.bundle import Range
from cachesmith.runtime import apply, open_bundle

ENGINES = ("torch", "compile", "onnxruntime", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx")
SIZES: dict[tuple[str, bool], dict[str, Any]] = {
    ("dit", False): {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "out_channels": 8},
    ("dit", True): {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3, "norm_num_groups": 2},
    ("flux", False): {"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True},
    ("flux", True): {
        "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (4, 4, 8), "guidance_embeds": True,
    },
}  # fmt: skip
"""DiT-XL/2 at 256 x 256 pixels, FLUX.1-dev at 1024 x 1024; and toys of the same shape."""

FEWEST = 8
"""Steps: at an interval of 5, fewer leave too few forecasts to time."""


def repeated_blocks(transformer: nn.Module) -> list[nn.Module]:
    """Every transformer block; diffusers' `compile_repeated_blocks` does not know DiT's."""
    return [block for child in transformer.children() if isinstance(child, nn.ModuleList) for block in child]


class Loop:
    """A sampling loop that stands for a pipeline: random weights, random text, no decoder."""

    def __init__(self, kind: str, tiny: bool, device: str, dtype: torch.dtype):
        self.kind, self.tiny, self.device, self.dtype = kind, tiny, torch.device(device), dtype
        torch.manual_seed(0)
        with _default(dtype, device):
            options = SIZES[kind, tiny]
            made = DiTTransformer2DModel(**options) if kind == "dit" else FluxTransformer2DModel(**options)
        self.transformer: Any = made.eval()
        self.scheduler = DDIMScheduler() if kind == "dit" else FlowMatchEulerDiscreteScheduler()
        self.seconds: list[float] = []

    @torch.no_grad()
    def __call__(self, pictures: int = 1, num_inference_steps: int = 20, **_: Any) -> Tensor:
        """Sample; the time of every transformer call is in `seconds`."""
        self.scheduler.set_timesteps(num_inference_steps)
        latents = self._noise(pictures)
        given = self._conditions(latents)
        self.seconds = []
        for step in self.scheduler.timesteps:
            self._wait()
            began = time.perf_counter()
            output = (
                self._dit(latents, step, given) if self.kind == "dit" else self._flux(latents, step, given)
            )
            self._wait()
            self.seconds.append(time.perf_counter() - began)
            latents = self.scheduler.step(output, step, latents).prev_sample
        return latents

    def _noise(self, pictures: int) -> Tensor:
        torch.manual_seed(1)
        side = 32 if self.kind == "dit" else 8 if self.tiny else 64
        shape = (pictures, 4, side, side) if self.kind == "dit" else (pictures, side * side, 64)
        return torch.randn(shape, dtype=self.dtype, device=self.device)

    def _conditions(self, latents: Tensor) -> dict[str, Any]:
        """What every call of a run is given beside the latents and the step."""
        n = len(latents)
        place: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        if self.kind == "dit":
            return {"class_labels": torch.tensor([1] * n + [1000] * n, device=self.device)}
        config, tokens = self.transformer.config, latents.shape[1]
        torch.manual_seed(2)
        ids, side = torch.zeros(tokens, 3, **place), int(tokens**0.5)
        ids[:, 1], ids[:, 2] = (torch.arange(tokens) // side).to(ids), (torch.arange(tokens) % side).to(ids)
        return {
            "encoder_hidden_states": torch.randn(n, 512, config.joint_attention_dim, **place),
            "pooled_projections": torch.randn(n, config.pooled_projection_dim, **place),
            "guidance": torch.full((n,), 3.5, **place),
            "img_ids": ids,
            "txt_ids": torch.zeros(512, 3, **place),
        }

    def _dit(self, latents: Tensor, step: Tensor, given: dict[str, Any]) -> Tensor:
        both = torch.cat([latents, latents])
        result: Tensor = self.transformer(
            both, timestep=step.to(self.device).expand(len(both)), **given
        ).sample
        with_label, without = result[:, :4].chunk(2)
        return without + 4 * (with_label - without)

    def _flux(self, latents: Tensor, step: Tensor, given: dict[str, Any]) -> Tensor:
        times = (step / 1000).to(latents).expand(len(latents))
        result: Tensor = self.transformer(hidden_states=latents, timestep=times, return_dict=False, **given)[
            0
        ]
        return result

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextmanager
def _default(dtype: torch.dtype, device: str) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


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
        args.out.write_text(f"`{' '.join(sys.argv)}` on {gpu}, torch {torch.__version__}\n\n{table(found)}")
    if any(row.get("failed") for row in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
