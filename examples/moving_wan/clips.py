"""Clips of Fashion-MNIST items that move across a canvas, their captions, and the tokenizer that reads those."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent.parent / "fashion_dit"))
from data import CLASSES

FRAMES, SIZE, ITEM = 9, 32, 20
"""Frames of a clip, pixels of the canvas, pixels of the item: both are squares."""

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Which way x (rightwards) and y (downwards) go."""

TOKENS = 8
"""Length of every tokenised caption, end and padding included."""

SPECIAL = ("<pad>", "</s>", "<unk>")


def paths(directions: Tensor) -> Tensor:
    """Draw where items are: offsets [N, FRAMES, 2] in pixels from the middle, for directions [N].

    An item travels 10 to 12 pixels along its direction, evenly, and stays on the canvas.
    """
    count, room = len(directions), (SIZE - ITEM) / 2
    travel = 10 + 2 * torch.rand(count, 1)
    start = -travel / 2 + (2 * torch.rand(count, 1) - 1) * (room - travel / 2)
    along = start + travel * torch.linspace(0, 1, FRAMES)
    across = (torch.rand(count, 1) - 0.5) * room
    ways = torch.tensor(list(DIRECTIONS.values()), dtype=torch.float32)[directions][:, None]
    return along[..., None] * ways + across[..., None] * ways.flip(-1).abs()


def render(pictures: Tensor, offsets: Tensor) -> Tensor:
    """Place uint8 pictures [N, 1, 32, 32] at offsets [N, T, 2] in pixels: clips [N, T, 32, 32] in [0, 1]."""
    items = pictures[:, :, 2:30, 2:30].float() / 255
    items = F.interpolate(items, size=(ITEM, ITEM), mode="bilinear", antialias=True, align_corners=False)
    canvas = F.pad(items, ((SIZE - ITEM) // 2,) * 4)
    frames = offsets.shape[1]
    where = torch.eye(2, 3).repeat(len(pictures) * frames, 1, 1)
    where[:, :, 2] = -offsets.flatten(0, 1) * 2 / SIZE
    grid = F.affine_grid(where, [len(where), 1, SIZE, SIZE], align_corners=False)
    return F.grid_sample(canvas.repeat_interleave(frames, 0), grid, align_corners=False).view(
        -1, frames, SIZE, SIZE
    )


def to_video(clips: Tensor) -> Tensor:
    """Grey clips [N, T, H, W] in [0, 1] as the autoencoder reads them: [N, 3, T, H, W] in [-1, 1]."""
    return (2 * clips - 1)[:, None].expand(-1, 3, -1, -1, -1)


def caption(name: str, direction: str) -> str:
    """Return, for example, "an ankle boot moving left"."""
    article = "an" if name[0] in "aeiou" else "a"
    return f"{article} {name.lower()} moving {direction}"


def captions() -> list[str]:
    """Every caption there is: ten classes for each direction in turn."""
    return [caption(name, direction) for direction in DIRECTIONS for name in CLASSES]


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a word: the words of all captions, and three special ones."""
    words = sorted({word for text in captions() for word in text.split()})
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate((*SPECIAL, *words))}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TOKENS
    )
