"""Pictures are changed by the committed weights of examples/emoji_qwen, under the policy that was made for drawing."""

from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, QwenImageEditPlusPipeline, QwenImageImg2ImgPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from PIL import Image

from cachesmith.policies import load
from cachesmith.runtime import apply
from tests.pipelines.parts import picture
from tests.test_examples import EXAMPLES

FOLDER = EXAMPLES / "emoji_qwen"
SIDE = 64
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:cachesmith computed"
)


def drawing() -> Any:
    return DiffusionPipeline.from_pretrained(FOLDER / "model", dtype=torch.float32)


def sampled(pipe: Any, given: dict[str, Any], policy: Any = None) -> tuple[torch.Tensor, Any]:
    common = {"height": SIDE, "width": SIDE, "true_cfg_scale": 3.0, "num_inference_steps": 50}
    pipe.set_progress_bar_config(disable=True)

    def call() -> torch.Tensor:
        found: torch.Tensor = pipe(
            **given, **common, generator=torch.Generator().manual_seed(3), output_type="pt"
        ).images
        return found

    if policy is None:
        return call(), None
    with apply(pipe, policy) as session:
        return call(), session.stats


def edit(pipe: Any, image: Image.Image) -> tuple[Any, dict[str, Any]]:
    """The pipeline that edits, made of the parts that draw, and what it is asked."""
    given: dict[str, Any] = {"image": [image]}
    for prefix, prompt in (("", "twemoji crying face"), ("negative_", " ")):
        embeds, _ = pipe.encode_prompt(prompt, max_sequence_length=16)
        given[f"{prefix}prompt_embeds"] = embeds
    return QwenImageEditPlusPipeline(**pipe.components, processor=None), given


def test_an_edit_under_the_policy_for_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many tokens: the same schedule, and the difference is told."""
    # the pipeline has 1024 x 1024 pixels of whatever it is to edit: 16,384 tokens of this model's
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", SIDE**2)
    pipe, given = edit(drawing(), picture(0, SIDE))
    with pytest.warns(RuntimeWarning, match=r"latents of 64 x 16\), but this is .*latents of 128 x 16"):
        made, stats = sampled(pipe, given, load(FOLDER / "emoji.policy.safetensors"))
    assert stats.nfc == 10 and not stats.fallbacks and made.isfinite().all()


@pytest.mark.slow
def test_image_to_image_under_the_policy_for_drawing() -> None:
    """A run that begins at step 20 of 50 computes what no fitted weight reaches, tells so, and stays close."""
    pipe = drawing()
    given: dict[str, Any] = {
        "prompt": "twemoji crying face",
        "negative_prompt": " ",
        "max_sequence_length": 16,
    }
    start, _ = sampled(pipe, given)
    change = QwenImageImg2ImgPipeline(**pipe.components)
    given |= {"image": start, "strength": 0.6}
    plain, _ = sampled(change, given)
    made, stats = sampled(change, given, load(FOLDER / "emoji.policy.safetensors"))
    assert 6 < stats.nfc < 20 and stats.fallbacks
    assert float(-10 * (made - plain).square().mean().log10()) > 36
