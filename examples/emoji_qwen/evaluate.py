"""How good are the model's pictures? Is the real picture that is nearest to a sample the one that was asked for?

    python examples/emoji_qwen/evaluate.py   # about two minutes on one CPU core

Asks for 80 of the pictures that were trained on, and twice for each that was not (the subject is known in the
other style only), with 50 steps and seeds 0, 1, ... Each sample is looked up among the real pictures of all captions by
the distance of their 16x16 means. Prints the shares that are found right as one JSON line, and writes `samples.png`.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from captions import ARGUMENTS
from data import STYLES, Emoji, heldout, load
from diffusers import DiffusionPipeline
from PIL import Image
from rich.progress import track
from torch import Tensor

HERE = Path(__file__).parent
STEPS, BATCH = 50, 24
SHEET = (
    "grinning face", "crying face", "smiling face with sunglasses", "thinking face", "face with medical mask",
    "cat face with wry smile", "see-no-evil monkey", "blue heart", "broken heart", "heart with arrow",
    "large orange diamond", "large green square", "red apple", "lemon", "watermelon", "strawberry",
)  # fmt: skip
TRAINED, TIMES = 80, 2


def sample(pipe: Any, captions: list[str], **changes: Any) -> Tensor:
    """Sample a picture a caption, [N, 3, 64, 64] in [0, 1], with seeds 0, 1, ..."""
    asked, parts = ARGUMENTS | changes, []
    negative = asked.pop("negative_prompt")
    for first in track(range(0, len(captions), BATCH), "samples"):
        some = captions[first : first + BATCH]
        images = pipe(
            some,
            negative_prompt=[negative] * len(some),
            num_inference_steps=STEPS,
            generator=[torch.Generator().manual_seed(first + index) for index in range(len(some))],
            output_type="pt",
            **asked,
        ).images
        parts.append(images)
    return torch.cat(parts)


def nearest(samples: Tensor, real: Tensor) -> list[int]:
    """Return for each sample the index of the nearest real picture, both [N, 3, 64, 64] in [0, 1]."""
    small = [F.avg_pool2d(pictures, 4).flatten(1) for pictures in (samples, real)]
    return torch.cdist(*small).argmin(1).tolist()


def score(asked: list[Emoji], found: list[Emoji]) -> dict[str, float]:
    """Return the shares whose style, whose name, and whose both are those asked for."""
    pairs = list(zip(asked, found, strict=True))
    return {
        "samples": len(pairs),
        "style": sum(a.style == b.style for a, b in pairs) / len(pairs),
        "name": sum(a.name == b.name for a, b in pairs) / len(pairs),
        "picture": sum(a == b for a, b in pairs) / len(pairs),
    }


def save_sheet(pipe: Any, path: Path) -> None:
    """Write the captions of `SHEET` in the first style above those in the second."""
    rows = [[f"{style} {name}" for name in SHEET] for style in STYLES]
    pictures = sample(pipe, [caption for row in rows for caption in row])
    cells = pictures.view(len(rows), len(SHEET), 3, 64, 64).permute(0, 3, 1, 4, 2)
    pixels = (cells.reshape(len(rows) * 64, len(SHEET) * 64, 3) * 255).round().to(torch.uint8)
    Image.fromarray(pixels.numpy()).save(path, optimize=True)


def main() -> None:
    """Sample, look up, and print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--guidance", type=float, default=ARGUMENTS["true_cfg_scale"])
    args = parser.parse_args()
    pipe: Any = DiffusionPipeline.from_pretrained(args.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    shown, pictures = load(args.work)
    kept = [index for index, emoji in enumerate(shown) if emoji.learned]
    emoji, real = [shown[index] for index in kept], pictures[kept].float() / 255
    missing = heldout(shown)
    trained = random.Random(1).sample([one for one in emoji if one not in missing], TRAINED)
    never = TIMES * [one for one in emoji if one in missing]
    results: dict[str, Any] = {"guidance": args.guidance, "pictures": len(emoji)}
    for label, asked in (("trained", trained), ("never trained", never)):
        samples = sample(pipe, [one.caption for one in asked], true_cfg_scale=args.guidance)
        results[label] = score(asked, [emoji[index] for index in nearest(samples, real)])
    print(json.dumps(results))
    save_sheet(pipe, HERE / "samples.png")


if __name__ == "__main__":
    main()
