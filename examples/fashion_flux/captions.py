"""Captions of Fashion-MNIST pictures, and the tokenizer that reads them.

A caption names the class, and for a third of the pictures of each class how dark or bright they are.
"""

import sys
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent.parent / "fashion_dit"))
from data import CLASSES

TOKENS = 8
"""Length of every tokenised caption, start, end and padding included."""

SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")


def caption(name: str, shade: str = "") -> str:
    """Return, for example, "a dark ankle boot"."""
    return " ".join(word for word in ("a", shade, name.lower()) if word)


def captions(images: Tensor, labels: Tensor) -> list[str]:
    """Caption uint8 pictures [N, 1, H, W]; the darkest and brightest sixth of each class are called so."""
    brightness = images.flatten(1).float().mean(1)
    shades = [""] * len(images)
    for index in range(len(CLASSES)):
        of_class = (labels == index).nonzero().flatten()
        order = of_class[brightness[of_class].argsort()].tolist()
        sixth = len(order) // 6
        for shade, chosen in (("dark", order[:sixth]), ("bright", order[len(order) - sixth :])):
            for picture in chosen:
                shades[picture] = shade
    return [caption(CLASSES[i], shade) for i, shade in zip(labels.tolist(), shades, strict=True)]


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a word: the words of all captions, and four special ones."""
    words = {word for name in CLASSES for word in caption(name, "dark bright").split()}
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *sorted(words)))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unknown>",
        model_max_length=TOKENS,
    )


def prompts() -> list[str]:
    """Every caption there is: three shades of ten classes."""
    return [caption(name, shade) for shade in ("", "dark", "bright") for name in CLASSES]
