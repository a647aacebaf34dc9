"""How good are the model's clips? A small CNN names what is seen on them, and the brightness says where it goes.

    python examples/moving_wan/evaluate.py          # about 5 minutes on one CPU core

The CNN of `examples/fashion_dit` learns single frames of real clips; a clip's class is the one with the largest mean
logit over its frames. Its direction is that in which the centre of brightness goes from the first frame to the last.
Prints the shares of right classes and directions on clips of real test pictures and on samples (50 steps, seeds 0, 1,
..., captions in turn). Writes `samples.png` (frames side by side) and `samples.gif`.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from clips import DIRECTIONS, FRAMES, SIZE, captions, paths, render
from diffusers import DiffusionPipeline
from pictures import save_animation, save_frames
from rich.progress import track
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "fashion_dit"))
from classifier import train_cnn  # noqa: E402
from data import CLASSES, load  # noqa: E402

STEPS, BATCH = 50, 20


def sample(model: Path, count: int) -> Tensor:
    """Sample `count` clips [N, FRAMES, 32, 32] in [0, 1], captions in turn, seeds 0, 1, ..."""
    pipe = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    first = json.loads((HERE / "prompts.jsonl").read_text().splitlines()[0])
    common = {name: value for name, value in first.items() if name != "prompt"}
    texts, parts = captions(), []
    for seeds in track(torch.arange(count).split(BATCH), "samples"):
        parts.append(pipe(
            [texts[seed % len(texts)] for seed in seeds.tolist()],
            num_inference_steps=STEPS,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds.tolist()],
            output_type="pt",
            **common,
        ).frames.mean(2))  # fmt: skip
    return torch.cat(parts)


@torch.no_grad()
def classes(cnn: nn.Module, clips: Tensor) -> Tensor:
    """Return the class [N] of each clip."""
    logits = [cnn(2 * chunk.reshape(-1, 1, SIZE, SIZE) - 1) for chunk in clips.split(50)]
    return torch.cat(logits).view(len(clips), FRAMES, -1).mean(1).argmax(1)


def directions(clips: Tensor) -> Tensor:
    """Return the direction [N] of each clip, as its place in `DIRECTIONS`."""
    ends = clips[:, [0, -1]]
    axis = torch.arange(SIZE, dtype=torch.float32)
    total = ends.sum((2, 3)).clamp_min(1e-6)
    centre = torch.stack([(ends.sum(2) * axis).sum(2) / total, (ends.sum(3) * axis).sum(2) / total], -1)
    ways = torch.tensor(list(DIRECTIONS.values()), dtype=torch.float32)
    return ((centre[:, 1] - centre[:, 0]) @ ways.T).argmax(1)


def right(cnn: nn.Module, clips: Tensor, wanted: Tensor, going: Tensor) -> dict[str, float]:
    """Return the shares of clips that show their class and go their way."""
    seen, went = classes(cnn, clips) == wanted, directions(clips) == going
    shares = {"class": seen, "direction": went, "both": seen & went}
    return {name: round(share.float().mean().item(), 4) for name, share in shares.items()}


def main() -> None:
    """Train the classifier, sample, and print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(0)
    images, labels = load(args.work, "train")
    anywhere = paths(torch.randint(len(DIRECTIONS), labels.shape))[:, torch.randint(FRAMES, ()), None]
    frames = torch.cat(
        [render(*chunk) for chunk in zip(images.split(5000), anywhere.split(5000), strict=True)]
    )
    cnn = train_cnn((255 * frames).round().byte(), labels, args.epochs)
    images, labels = (x[:1000] for x in load(args.work, "t10k"))
    going = torch.arange(len(labels)) % len(DIRECTIONS)
    report = {"real": right(cnn, render(images, paths(going)), labels, going)}
    clips = sample(args.model, args.samples)
    numbers = torch.arange(args.samples)
    wanted, going = numbers % len(CLASSES), numbers // len(CLASSES) % len(DIRECTIONS)
    report["samples"] = right(cnn, clips, wanted, going)
    save_frames(clips[: 4 * len(CLASSES)], HERE / "samples.png")
    save_animation(clips[: 4 * len(CLASSES)], HERE / "samples.gif")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
