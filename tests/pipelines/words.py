"""A tokenizer and a text encoder, where pipelines take texts only."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Letters:
    """Every letter is a token; texts are padded to one length."""

    padding_side = "right"
    model_max_length = 8

    def __call__(self, texts: str | list[str], **_: Any) -> Any:
        """[N, tokens] of numbers, and which of them count."""
        listed = [texts] if isinstance(texts, str) else texts
        length = self.model_max_length
        ids = torch.tensor(
            [[1 + ord(letter) % 62 for letter in text[-length:].rjust(length)] for text in listed]
        )
        return SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids))

    def batch_decode(self, ids: Tensor) -> list[str]:
        """Never mind which."""
        return [""] * len(ids)


class Table(nn.Module):
    """One state a letter, from a table: the same in every one of its `layers`."""

    def __init__(self, width: int = 32, layers: int = 1):
        super().__init__()
        self.layers = layers
        self.table = nn.Embedding(64, width)
        self.config = SimpleNamespace(d_model=width, hidden_size=width, model_type="table")
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def get_input_embeddings(self) -> nn.Embedding:
        """The table."""
        return self.table

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        """[N, tokens] -> states [N, tokens, width]."""
        states: Tensor = self.table(input_ids)
        return SimpleNamespace(last_hidden_state=states, hidden_states=(states,) * self.layers)
