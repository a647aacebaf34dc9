"""How good are the demo model's pictures? A small CNN, trained on the real data, classifies samples of every class.

    python examples/fashion_dit/evaluate.py          # about 5 minutes on 2 CPU cores

Prints the CNN's accuracy on real test pictures and on 500 samples (50 steps, guidance 1.5), and writes `samples.png`.
"""

import argparse
import json
from pathlib import Path

import torch
from classifier import accuracy, save_sheet, train_cnn
from data import CLASSES, load, to_float
from diffusers import DiffusionPipeline
from rich.progress import track
from torch import Tensor

HERE = Path(__file__).parent
STEPS, GUIDANCE, BATCH = 50, 1.5, 50


def sample(model: Path, count: int) -> tuple[Tensor, Tensor]:
    """Sample `count` pictures [N, 1, 32, 32] in [0, 1], classes in turn, seeds 0, 1, ..."""
    pipe = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    labels = torch.arange(count) % len(CLASSES)
    parts = []
    for first in track(range(0, count, BATCH), "samples"):
        chosen = labels[first : first + BATCH].tolist()
        noise = [torch.Generator().manual_seed(first + i) for i in range(len(chosen))]
        parts.append(
            pipe(
                chosen, guidance_scale=GUIDANCE, num_inference_steps=STEPS, generator=noise, output_type="pt"
            ).images
        )
    return torch.cat(parts), labels


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
    cnn = train_cnn(*load(args.work, "train"), args.epochs)
    test_images, test_labels = load(args.work, "t10k")
    pictures, labels = sample(args.model, args.samples)
    save_sheet(pictures, HERE / "samples.png")
    print(json.dumps({
        "real_test_accuracy": accuracy(cnn, to_float(test_images), test_labels),
        "sample_accuracy": accuracy(cnn, pictures * 2 - 1, labels),
        "samples": args.samples,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
