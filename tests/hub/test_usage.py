"""The code on a card calls the pipeline as the policy was calibrated."""

import contextlib
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from cachesmith.hub import files_of
from cachesmith.hub.card import Base
from cachesmith.policies import load

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(code: str, monkeypatch: pytest.MonkeyPatch, **names: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return how the model is loaded and what the pipeline is called with."""
    loaded: dict[str, Any] = {}
    called: dict[str, Any] = {}

    class Pipe:
        @classmethod
        def from_pretrained(cls, name: str, **options: Any) -> "Pipe":
            loaded.update(name=name, **options)
            return cls()

        def to(self, device: str) -> "Pipe":
            return self

        def __call__(self, **arguments: Any) -> Any:
            called.update(arguments)
            return SimpleNamespace(images=[1], frames=[2])

    monkeypatch.setattr("diffusers.DiffusionPipeline", Pipe)
    monkeypatch.setattr("cachesmith.policies.load", lambda name: name)
    monkeypatch.setattr("cachesmith.runtime.apply", lambda *_: contextlib.nullcontext())
    exec(code, names)
    return loaded, called


@pytest.mark.parametrize(
    ("file", "given"),
    [
        ("emoji_qwen/emoji", {"prompt": "x", "height": 64, "width": 64, "true_cfg_scale": 3, "negative_prompt": " "}),
        (
            "moving_wan/moving",
            {"prompt": "x", "height": 32, "width": 32, "num_frames": 9, "guidance_scale": 2, "guidance_scale_2": 2},
        ),
        ("fashion_dit/fashion", {"class_labels": [1], "guidance_scale": 1.5}),
        ("fashion_flux/fashion-flux", {"prompt": "x"}),
    ],
)  # fmt: skip
def test_the_code_of_a_card(file: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load(EXAMPLES / f"{file}.policy.safetensors")
    assert policy.document.model is not None
    pipeline = getattr(diffusers, policy.document.model.pipeline)
    card = files_of("user/x", policy, Base("org/model", "abc"))["README.md"].decode()
    code = card.split("```python\n")[1].split("```")[0]
    loaded, called = run(code, monkeypatch, prompt="x", class_labels=[1])
    assert loaded == {"name": "org/model", "revision": "abc", "dtype": torch.float32}
    assert called == given | {"num_inference_steps": 50}
    inspect.signature(pipeline.__call__).bind(None, **called)
    height, width = (given.get(name) for name in ("height", "width"))
    assert (f"- size: {height} x {width}" in card) == (height is not None)
