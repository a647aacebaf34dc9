"""The words of the captions, the tokenizer that reads them, and the captions that are asked for in the benchmarks."""

from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""What `QwenImagePipeline` writes around every prompt."""
SKIPPED = 34
"""The tokens before the prompt, which the pipeline leaves out: with one token a word there are as many as in Qwen's."""
TOKENS = 16
"""Length of the captions that the transformer reads: prompt, and the template's end as far as it fits."""
ARGUMENTS: dict[str, Any] = {
    "height": 64, "width": 64, "true_cfg_scale": 3.0, "negative_prompt": " ", "max_sequence_length": TOKENS
}  # fmt: skip
"""What the pipeline needs to be told for pictures of this size, with guidance."""
SPECIAL = ("<pad>", "<unknown>")
WORD = r"<\|im_start\|>|<\|im_end\|>|\n|[:,]|[^\s<|>:,]+"


def tokenizer(captions: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a word: the words of the template and of all captions."""
    raw = Tokenizer(models.WordLevel({}, unk_token="<unknown>"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "removed", invert=True)
    words = set()
    for caption in (TEMPLATE, *captions):
        lower = raw.normalizer.normalize_str(caption)
        words |= {word for word, _ in raw.pre_tokenizer.pre_tokenize_str(lower)}
    raw.model = models.WordLevel(
        {word: index for index, word in enumerate((*SPECIAL, *sorted(words)))}, unk_token="<unknown>"
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unknown>", padding_side="right"
    )
