"""Options that several commands share."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class DType(StrEnum):
    """Precision of the pipeline."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}


def size(text: str) -> int:
    """Read a number of bytes such as `512MiB` or `2G`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)(?:i?b)?", text.strip().lower())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no size; write bytes, or for example 512MiB")
    return int(float(found[1]) * UNITS[found[2]])


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A local diffusers pipeline folder, or a Hugging Face hub id.")
]
PolicyFile = Annotated[Path, typer.Option("--policy", metavar="X", help="Policy file, X.policy.safetensors.")]
MaybePolicyFile = Annotated[
    Path | None, typer.Option("--policy", metavar="X", help="Policy file, X.policy.safetensors.")
]
ProfileName = Annotated[
    str | None,
    typer.Option("--profile", metavar="P", help="A profile of the policy; see `cachesmith inspect`."),
]
Bundle = Annotated[
    Path | None,
    typer.Option(
        "--bundle", metavar="BUNDLE", help="Compute with the engines that `cachesmith export` made."
    ),
]
Backend = Annotated[
    str | None,
    typer.Option("--backend", help="What runs the bundle, such as onnxruntime.", show_default="its target"),
]


class Elsewise(StrEnum):
    """What is done with inputs that a bundle was not exported for."""

    error = "error"
    torch = "torch"


Outside = Annotated[
    Elsewise, typer.Option("--outside", help="Inputs the bundle was not exported for: refuse, or use torch.")
]
CudaGraphs = Annotated[
    bool, typer.Option("--cuda-graphs", help="Replay the bundle's engines as CUDA graphs (tensorrt).")
]
Prompts = Annotated[
    Path,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help='One prompt a line, or a JSON object of pipeline arguments such as {"class_labels": 3}.',
    ),
]
Steps = Annotated[
    int | None,
    typer.Option("--steps", min=1, help="Sampler steps.", show_default="the policy's, else 50"),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance-scale", min=0, help="Guidance scale.", show_default="the policy's, else the pipeline's"
    ),
]
HeldoutSeed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        help="Seed of the first picture; the next ones count up.",
        show_default="the policy's held-out seeds, else from 1000000",
    ),
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Largest number of pictures sampled at once.")]
Device = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1, ...", show_default="cuda where there is one"),
]
Precision = Annotated[
    DType | None,
    typer.Option("--dtype", help="Precision.", show_default="float32 on a CPU, bfloat16 on a GPU"),
]
Lpips = Annotated[
    Path | None,
    typer.Option(
        "--lpips", metavar="FILE", help="Measure LPIPS too, with the weights benchmarks/fetch_lpips.py wrote."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
