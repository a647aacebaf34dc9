"""What entering `apply` costs a server that does so for every request: the first time, and again.

    python benchmarks/entry.py > benchmarks/entry.md

The examples with their policies, and FLUX.1's 57 blocks (1,156 parameters) at a tiny width. The smallest processor time
of many entries, on one thread: what other processes take is left out.
"""

from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import diffusers
import torch

from cachesmith.policies import Document, Modules, Policy, Stack, Units, load, preset
from cachesmith.runtime import apply
from cachesmith.runtime.models.fingerprint import model_key

EXAMPLES = Path(__file__).parents[1] / "examples"
REPEATS = 200


def deep_flux() -> Any:
    """As deep as FLUX.1."""
    return diffusers.FluxTransformer2DModel(
        num_layers=19,
        num_single_layers=38,
        attention_head_dim=8,
        num_attention_heads=1,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )


def bound(transformer: Any, units: Units) -> Policy:
    """A policy that was made for this model."""
    profile = preset("taylorseer-lite").profile(None).model_copy(update={"units": units})
    return Policy(Document(name="entry", profiles={"default": profile}, model=model_key(transformer)), {})


def milliseconds(enter: Callable[[], None], repeats: int) -> float:
    """The least that one call took."""
    times = []
    for _ in range(repeats):
        begun = process_time()
        enter()
        times.append(process_time() - begun)
    return min(times) * 1e3


def row(name: str, transformer: Any, policy: Policy, scheduler: Any) -> str:
    """Enter once, then again and again."""

    def enter() -> None:
        with apply(transformer, policy, scheduler=scheduler):
            pass

    first = milliseconds(enter, 1)
    parameters = len([*transformer.parameters()])
    return f"| {name} | {parameters:,} | {first:.1f} | {milliseconds(enter, REPEATS):.2f} |"


def main() -> None:
    """Measure and print the table."""
    torch.set_num_threads(1)
    dit, flux = diffusers.DiTTransformer2DModel, diffusers.FluxTransformer2DModel
    ddim, euler = diffusers.DDIMScheduler(), diffusers.FlowMatchEulerDiscreteScheduler()
    print("| model, policy | parameters | first entry, ms | again, ms |\n| --- | ---: | ---: | ---: |")
    for name, file, kind, scheduler in (
        ("fashion_dit", "fashion", dit, ddim),
        ("fashion_flux", "fashion-flux", flux, euler),
    ):
        transformer = kind.from_pretrained(EXAMPLES / name / "model" / "transformer")
        policy = load(EXAMPLES / name / f"{file}.policy.safetensors")
        print(row(f"examples/{name}", transformer, policy, scheduler))
    for label, units in (("stack", Stack()), ("modules", Modules())):
        transformer = deep_flux()
        print(row(f"FLUX.1's depth, {label}", transformer, bound(transformer, units), euler))


if __name__ == "__main__":
    main()
