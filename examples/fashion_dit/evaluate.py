"""How good are the demo model's pictures? A small CNN, trained on the real data, classifies samples of every class.

    python examples/fashion_dit/evaluate.py          # about 5 minutes on 2 CPU cores

Prints the CNN's accuracy on real test pictures and on 500 samples (50 steps, guidance 1.5), and writes `samples.png`.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from data import CLASSES, load, to_float
from diffusers import DiffusionPipeline
from PIL import Image
from rich.progress import track
from torch import Tensor, nn

HERE = Path(__file__).parent
STEPS, GUIDANCE, BATCH = 50, 1.5, 50


def build_cnn() -> nn.Sequential:
    """Return an untrained classifier of 1x32x32 pictures."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

    features = [*block(1, 32), *block(32, 64), *block(64, 128)]
    return nn.Sequential(*features, nn.Flatten(), nn.Dropout(0.3), nn.Linear(128 * 16, len(CLASSES)))


def train_cnn(images: Tensor, labels: Tensor, epochs: int) -> nn.Sequential:
    """Fit the classifier with Adam and a one-cycle learning rate."""
    cnn, batch = build_cnn(), 256
    optimizer = torch.optim.Adam(cnn.parameters())
    total = epochs * (len(labels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=total)
    for _ in track(range(total), "classifier"):
        index = torch.randint(len(labels), (batch,))
        F.cross_entropy(cnn(to_float(images[index])), labels[index]).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return cnn.eval()


@torch.no_grad()
def accuracy(cnn: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """Return the share of pictures in [-1, 1] that the classifier puts into their class."""
    right = [
        cnn(chunk).argmax(1) == wanted
        for chunk, wanted in zip(pixels.split(500), labels.split(500), strict=True)
    ]
    return torch.cat(right).float().mean().item()


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


def save_sheet(pictures: Tensor, path: Path) -> None:
    """Write ten rows of pictures, one class a column, three times enlarged."""
    grid = pictures[:100, 0].reshape(10, 10, 32, 32).permute(0, 2, 1, 3).reshape(320, 320)
    Image.fromarray((grid * 255).round().byte().numpy()).resize((960, 960), Image.Resampling.NEAREST).save(
        path
    )


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
