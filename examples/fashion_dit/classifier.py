"""A small CNN trained on the real pictures, which judges samples, and a sheet to look at."""

from pathlib import Path

import torch
import torch.nn.functional as F
from data import CLASSES, to_float
from PIL import Image
from rich.progress import track
from torch import Tensor, nn


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


def save_sheet(pictures: Tensor, path: Path) -> None:
    """Write ten rows of pictures, one class a column, three times enlarged."""
    grid = pictures[:100, 0].reshape(10, 10, 32, 32).permute(0, 2, 1, 3).reshape(320, 320)
    Image.fromarray((grid * 255).round().byte().numpy()).resize((960, 960), Image.Resampling.NEAREST).save(
        path
    )
