"""Options that several commands share: single ones, and groups that stand for all their fields."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from cachesmith.commands.shared import completion

MODEL, SAMPLING, ENGINES, FLEET, OUTPUT = "Model", "Sampling", "Engines", "Machines", "Output"
"""Panels of the help."""


class PipelineDType(StrEnum):
    """Precision of the pipeline."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


LAST_SEED = 2**63 - 1
"""Torch takes a bit more, which is left for the seeds that count up from it."""


def size(text: str) -> int:
    """Read a number of bytes such as `512MiB` (2^20 bytes each) or `2GB` (10^9 each)."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise typer.BadParameter(f"{text!r} is no size; write bytes, or for example 512MiB") from None


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A local diffusers pipeline folder, or a Hugging Face hub id.",
        autocompletion=completion.folders,
    ),
]
_POLICY = typer.Option(
    "--policy",
    metavar="X",
    help="Policy file, X.policy.safetensors, or USER/NAME or USER/NAME@REVISION on the Hugging Face Hub.",
    autocompletion=completion.policy_files,
)
PolicyFile = Annotated[Path, _POLICY]
MaybePolicyFile = Annotated[Path | None, _POLICY]
NewPolicyFile = Annotated[
    Path,
    typer.Option(
        "--out", metavar="X.policy.safetensors", help="The policy file to write.", rich_help_panel=OUTPUT
    ),
]
ProfileName = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="P",
        help="A profile of the policy; see `cachesmith inspect`.",
        autocompletion=completion.profiles,
    ),
]
Prompts = Annotated[
    Path,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help='One prompt a line, or a JSON object of pipeline arguments such as {"class_labels": 3}.',
    ),
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        "--num-inference-steps",
        min=1,
        help="Sampler steps.",
        show_default="the policy's, else 50",
        rich_help_panel=SAMPLING,
    ),
]


def _seed(default: bool | str) -> Any:
    return typer.Option(
        "--seed",
        min=0,
        max=LAST_SEED,
        metavar="N",
        help="Seed of the first picture; the next ones count up.",
        show_default=default,
        rich_help_panel=SAMPLING,
    )


SeedOption = Annotated[int, _seed(True)]
HeldoutSeed = Annotated[int | None, _seed("the policy's held-out seeds, else from 1000000")]
BatchSize = Annotated[
    int,
    typer.Option(
        "--batch", min=1, help="Largest number of pictures sampled at once.", rich_help_panel=SAMPLING
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="cpu, cuda, cuda:1, mps, ...",
        show_default="cuda where there is one",
        rich_help_panel=MODEL,
        autocompletion=completion.devices,
    ),
]
Precision = Annotated[
    PipelineDType | None,
    typer.Option(
        "--dtype",
        help="Precision.",
        show_default="float32 on a CPU, bfloat16 elsewhere",
        rich_help_panel=MODEL,
    ),
]
LpipsOption = Annotated[
    Path | None,
    typer.Option(
        "--lpips", metavar="FILE", help="Measure LPIPS too, with the weights benchmarks/fetch_lpips.py wrote."
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document and nothing else.", rich_help_panel=OUTPUT),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Overwrite files that exist.", rich_help_panel=OUTPUT),
]


@dataclass(frozen=True)
class Loading:
    """Which files of a model are loaded, onto what, in which precision."""

    revision: Annotated[
        str | None,
        typer.Option(
            "--revision", help="Branch, tag or commit of a hub id.", rich_help_panel=MODEL, metavar="NAME"
        ),
    ] = None
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant",
            help="Weights saved under a name of their own, such as fp16.",
            rich_help_panel=MODEL,
            metavar="NAME",
        ),
    ] = None
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            help="Hub token for gated and private models.",
            envvar="HF_TOKEN",
            show_envvar=True,
            rich_help_panel=MODEL,
            metavar="TOKEN",
        ),
    ] = None
    dtype: Precision = None
    device: Device = None


@dataclass(frozen=True)
class Sampling:
    """What every call of the pipeline is given, unless a prompt of the file says otherwise."""

    height: Annotated[
        int | None,
        typer.Option(
            "--height",
            min=1,
            help="Pixels.",
            show_default="the policy's, else the pipeline's",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    width: Annotated[
        int | None,
        typer.Option(
            "--width",
            min=1,
            help="Pixels.",
            show_default="the policy's, else the pipeline's",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    num_frames: Annotated[
        int | None,
        typer.Option(
            "--num-frames",
            min=1,
            help="Frames of a video.",
            show_default="the policy's, else the pipeline's",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    negative_prompt: Annotated[
        str | None,
        typer.Option("--negative-prompt", help="What guidance leads away from.", rich_help_panel=SAMPLING),
    ] = None
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            "--guidance-scale",
            min=0,
            help="Guidance scale.",
            show_default="the policy's, else the pipeline's",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    true_cfg_scale: Annotated[
        float | None,
        typer.Option(
            "--true-cfg-scale",
            min=0,
            help="Guidance by the negative prompt, of FLUX, Qwen-Image and others.",
            show_default="the policy's, else the pipeline's",
            rich_help_panel=SAMPLING,
        ),
    ] = None


class Elsewise(StrEnum):
    """What is done with inputs that a bundle was not exported for."""

    error = "error"
    torch = "torch"


@dataclass(frozen=True)
class EngineOptions:
    """A bundle, and how it is run."""

    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            metavar="BUNDLE",
            help="Compute with the engines that `cachesmith export` made.",
            rich_help_panel=ENGINES,
            autocompletion=completion.folders,
        ),
    ] = None
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            help="What runs the bundle, such as onnxruntime.",
            show_default="its target",
            rich_help_panel=ENGINES,
        ),
    ] = None
    outside: Annotated[
        Elsewise,
        typer.Option(
            "--outside",
            help="Inputs the bundle was not exported for: refuse, or use torch.",
            rich_help_panel=ENGINES,
        ),
    ] = Elsewise.error
    cuda_graphs: Annotated[
        bool,
        typer.Option(
            "--cuda-graphs",
            help="Replay the bundle's engines as CUDA graphs (tensorrt).",
            rich_help_panel=ENGINES,
        ),
    ] = False
