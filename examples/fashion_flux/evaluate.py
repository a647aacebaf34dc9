"""How good are the model's pictures? The judge of `examples/fashion_dit` classifies samples of every caption.

    python examples/fashion_flux/evaluate.py          # about 12 minutes on 2 CPU cores

Prints the classifier's accuracy on real test pictures and on 500 samples (50 steps) without and with guidance, and how
bright the pictures of dark, plain and bright captions are. Writes `samples.png`, without guidance: one class a column;
plain, dark and bright captions in turn.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from captions import TOKENS, prompts
from diffusers import DiffusionPipeline
from rich.progress import track
from torch import Tensor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "fashion_dit"))
from classifier import accuracy, save_sheet, train_cnn  # noqa: E402
from data import CLASSES, load, to_float  # noqa: E402

STEPS, BATCH = 50, 50
GUIDANCE = 1.5
"""As in `examples/fashion_dit`; captions were left out now and then in training, so that this works."""


def sample(model: Path, count: int, **guidance: Any) -> Tensor:
    """Sample `count` pictures [N, 1, 32, 32] in [0, 1], captions in turn, seeds 0, 1, ..."""
    pipe = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    texts = prompts()
    parts = []
    for first in track(range(0, count, BATCH), "samples"):
        seeds = range(first, min(first + BATCH, count))
        images = pipe(
            [texts[seed % len(texts)] for seed in seeds],
            height=32,
            width=32,
            max_sequence_length=TOKENS,
            num_inference_steps=STEPS,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
            **guidance,
        ).images
        parts.append(images)
    return torch.cat(parts)


def main() -> None:
    """Train the classifier, sample, and print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    judge = train_cnn(*load(args.work, "train"), args.epochs)
    test_images, test_labels = load(args.work, "t10k")
    pictures = sample(args.model, args.samples)
    save_sheet(pictures, HERE / "samples.png")
    guided = sample(args.model, args.samples, true_cfg_scale=GUIDANCE, negative_prompt="")
    wanted = torch.arange(args.samples) % len(CLASSES)
    shade = torch.arange(args.samples) // len(CLASSES) % 3
    brightness = [pictures[shade == index].mean().item() for index in range(3)]
    print(json.dumps({
        "real_test_accuracy": accuracy(judge, to_float(test_images), test_labels),
        "sample_accuracy": accuracy(judge, pictures * 2 - 1, wanted),
        f"sample_accuracy_guidance_{GUIDANCE}": accuracy(judge, guided * 2 - 1, wanted),
        "brightness": dict(zip(("plain", "dark", "bright"), brightness, strict=True)),
        "samples": args.samples,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
