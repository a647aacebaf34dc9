"""Calibrate the FLUX example as it runs: with quantised weights, and by another attention backend.

    pip install torchao bitsandbytes
    python benchmarks/quantized.py --out benchmarks/quantized.md

On a CPU diffusers' own loader for bitsandbytes refuses ("No GPU found"): its layers are put in by hand here.
"""

import argparse
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from cachesmith.calibrate import CalibrationConfig, calibrate
from cachesmith.commands.output import write_text
from cachesmith.sampling.metrics import psnr
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Prompt, read_prompts, requests

EXAMPLE = Path("examples/fashion_flux")
STEPS, BUDGET = 12, 20.0


def torchao(transformer: Any) -> None:
    """Weights in 8 bits, computed in float32."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(transformer, Int8WeightOnlyConfig())


def fp8(transformer: Any) -> None:
    """Weights are stored in 8 bits, and cast for each call."""
    transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)


def bitsandbytes_int8(transformer: Any) -> None:
    """LLM.int8() in the blocks."""
    from bitsandbytes.nn import Linear8bitLt

    _replaced(transformer, lambda shape, bias: Linear8bitLt(*shape, bias=bias, has_fp16_weights=False))


def bitsandbytes_nf4(transformer: Any) -> None:
    """Weights in 4 bits in the blocks."""
    from bitsandbytes.nn import Linear4bit

    _replaced(
        transformer,
        lambda shape, bias: Linear4bit(*shape, bias=bias, compute_dtype=torch.float32, quant_type="nf4"),
    )


def plain_attention(transformer: Any) -> None:
    """Attention from products and a softmax, in place of the fused kernel."""
    transformer.set_attention_backend("_native_math")


WAYS: dict[str, Callable[[Any], None]] = {
    "float32": lambda _: None,
    "torchao int8, weights alone": torchao,
    "stored in fp8 (`enable_layerwise_casting`)": fp8,
    "bitsandbytes int8, the blocks' layers": bitsandbytes_int8,
    "bitsandbytes nf4, the blocks' layers": bitsandbytes_nf4,
    'float32, `set_attention_backend("_native_math")`': plain_attention,
}


def _replaced(transformer: Any, make: Callable[[tuple[int, int], bool], nn.Module]) -> None:
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        for name, layer in [*block.named_modules()]:
            if isinstance(layer, nn.Linear):
                made = make((layer.in_features, layer.out_features), layer.bias is not None)
                made.load_state_dict(layer.state_dict())
                block.set_submodule(name, made.to("cpu"))


def row(name: str, prompts: list[Prompt], first: list[Tensor]) -> str:
    """One way: how far its own uncached pictures are from float32's, and its policy's from its own."""
    pipe = DiffusionPipeline.from_pretrained(EXAMPLE / "model", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    WAYS[name](pipe.transformer)
    first.append(Renderer(pipe, STEPS, 8)(requests(prompts, 8, 99)).images)
    away = "" if len(first) == 1 else f"{float(psnr(first[0], first[-1]).mean()):.1f}"
    with TemporaryDirectory() as work:
        settings = {"speedups": (3.0,), "fitting": 8, "heldout": 8, "batch": 8}
        config = CalibrationConfig(STEPS, BUDGET, work=Path(work), **settings)  # type: ignore[arg-type]
        profile = calibrate(pipe, prompts, config).policy.profile()
    assert profile.quality is not None
    quality = profile.quality.metrics["psnr"]
    return f"| {name} | {away} | {profile.nfc:g} | {quality.mean:.1f} | {quality.worst:.1f} |"


def main() -> None:
    """Write a line a way."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--out", type=Path, required=True)
    given, first, prompts = options.parse_args(), list[Tensor](), read_prompts(EXAMPLE / "prompts.jsonl")
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "diffusers", "torchao", "bitsandbytes")
    )
    lines = [
        "# Calibrated as it runs", "",
        "    python benchmarks/quantized.py --out benchmarks/quantized.md", "",
        f"The FLUX example, {STEPS} steps, budget {BUDGET:g}, 8 held-out samples, on a CPU ({versions}). PSNR in dB.",
        "*From float32*: uncached pictures of 8 samples against float32's, 100 at most. *Held out*: each way's own",
        "policy against its own uncached pictures, of the same samples.", "",
        "| weights, attention | from float32 | NFC | held out | worst |", "| --- | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for name in WAYS:
        lines.append(row(name, prompts, first))
        write_text(given.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
