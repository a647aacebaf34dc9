"""Train a small Qwen-Image on emoji: text to colour picture by flow matching, a `QwenImagePipeline` folder.

    python examples/emoji_qwen/train.py            # 16 minutes for the autoencoder, then an hour, on one core
    python examples/emoji_qwen/train.py --resume   # go on where an interrupted run stopped

The transformer (4 double-stream blocks) and a small text encoder of Qwen2.5-VL's class learn together from captions
such as "noto crying face". One caption in ten is left empty, for guidance. The result is `model/`, half-precision
safetensors, loaded by `DiffusionPipeline.from_pretrained`, and `prompts.jsonl`.
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path

import autoencoder
import torch
import torch.nn.functional as F
from captions import ARGUMENTS, SKIPPED, TEMPLATE, TOKENS, tokenizer
from data import heldout, load
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

HERE = Path(__file__).parent
TEXT_WIDTH = 96
CAPTION_DROPOUT = 0.1


class TextToVelocity(nn.Module):
    """Everything that is trained with captions: the text encoder and the transformer."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.text_encoder = Qwen2_5_VLForConditionalGeneration(_text_config(vocabulary))
        self.transformer = QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=4, attention_head_dim=44,
            num_attention_heads=4, joint_attention_dim=TEXT_WIDTH, axes_dims_rope=(8, 18, 18),
        )  # fmt: skip
        init_transformer(self.transformer)

    def forward(self, packed: Tensor, sigma: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the velocity [B, 64, 16] of packed latents at noise level `sigma` [B]."""
        language = self.text_encoder.model.language_model
        states = language(input_ids=tokens, attention_mask=mask).last_hidden_state
        velocity: Tensor = self.transformer(
            packed,
            timestep=sigma,
            encoder_hidden_states=states[:, SKIPPED:],
            encoder_hidden_states_mask=mask[:, SKIPPED:],
            img_shapes=[[(1, 8, 8)]] * len(packed),
        ).sample
        return velocity


def _text_config(vocabulary: int) -> Qwen2_5_VLConfig:
    """Two layers; the tower that would read pictures is there since the class has one, and is not used."""
    text = {
        "vocab_size": vocabulary, "hidden_size": TEXT_WIDTH, "intermediate_size": 2 * TEXT_WIDTH,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 3, "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 1, "out_hidden_size": TEXT_WIDTH,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)


def init_transformer(transformer: QwenImageTransformer2DModel) -> None:
    """Zero the modulations and the last layer (DiT, section 3.2: adaLN-Zero)."""
    layers = [
        layer[1] for block in transformer.transformer_blocks for layer in (block.img_mod, block.txt_mod)
    ]
    for layer in [*layers, transformer.norm_out.linear, transformer.proj_out]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def scaled(vae: AutoencoderKLQwenImage, latents: Tensor) -> Tensor:
    """Return latents [N, 4, 16, 16] of mean 0 and deviation 1, packed as the pipeline packs: [N, 64, 16]."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (vae.config.latents_mean, vae.config.latents_std))
    packed: Tensor = QwenImagePipeline._pack_latents((latents - mean) / std, len(latents), *latents.shape[1:])
    return packed


def tokenised(words: PreTrainedTokenizerFast, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Return tokens and mask [N, 50] of captions in the pipeline's template, the template's end cut off."""
    found = words(
        [TEMPLATE.format(caption) for caption in captions],
        padding="max_length", truncation=True, max_length=SKIPPED + TOKENS, return_tensors="pt",
    )  # fmt: skip
    return found.input_ids, found.attention_mask


def trained_autoencoder(pictures: Tensor, args: argparse.Namespace) -> AutoencoderKLQwenImage:
    """Train it, or take the one that an interrupted run has trained."""
    saved = args.work / "autoencoder.pt"
    if args.resume and saved.exists():
        return autoencoder.restored(saved)
    return autoencoder.train(autoencoder.build(), pictures, args.autoencoder_minutes, saved)


def learning_rate(step: int, part: float) -> float:
    """Warm up over 50 steps, then a cosine down to 2 percent when `part`, the share of the time spent, is 1."""
    return 1e-3 * min(1.0, (step + 1) / 50) * (0.51 + 0.49 * math.cos(math.pi * min(1.0, part)))


def noise_levels(count: int) -> Tensor:
    """Draw sigmas from a logit-normal distribution (SD3, arXiv 2403.03206, section 3.1)."""
    return torch.sigmoid(torch.randn(count))


class Training:
    """The state of a run, which `checkpoint.pt` holds every 50 steps."""

    def __init__(self, model: TextToVelocity):
        self.model = model
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.step, self.seconds, self.loss = 0, 0.0, 1.0

    def resume(self, saved: Path) -> None:
        """Take the state that `save` wrote."""
        state = torch.load(saved, weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        for name in ("model", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])

    def save(self, saved: Path) -> None:
        """Write the state, all or nothing."""
        state = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer")}
        part = saved.with_suffix(".part")
        torch.save(state | {"step": self.step, "seconds": self.seconds}, part)
        part.replace(saved)

    def take(self, packed: Tensor, tokens: Tensor, mask: Tensor, part: float) -> None:
        """One step on velocity = noise - picture, and of the averaged weights."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, part)
        noise, sigma = torch.randn_like(packed), noise_levels(len(packed))
        noisy = torch.lerp(packed, noise, sigma[:, None, None])
        # the backward of torch's fused attention is slow on a CPU, and a third of the step
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            velocity = self.model(noisy, sigma, tokens, mask)
        loss = F.mse_loss(velocity.float(), noise - packed)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        decay = min(0.998, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        self.loss = 0.98 * self.loss + 0.02 * loss.item()
        self.step += 1


def train(run: Training, packed: Tensor, tokens: Tensor, mask: Tensor, args: argparse.Namespace) -> None:
    """Take steps until the time is over; the last row of `tokens` and `mask` is the empty caption."""
    saved, spent = args.work / "checkpoint.pt", run.seconds
    began = time.monotonic()
    with Progress() as progress:
        task = progress.add_task("transformer", total=60 * args.minutes)
        while run.seconds < 60 * args.minutes:
            index = torch.randint(len(packed), (args.batch,))
            caption = torch.where(torch.rand(args.batch) < CAPTION_DROPOUT, len(tokens) - 1, index)
            run.take(packed[index], tokens[caption], mask[caption], run.seconds / (60 * args.minutes))
            run.seconds = spent + time.monotonic() - began
            progress.update(task, completed=run.seconds)
            if run.step % 50 == 0:
                rate = run.step * args.batch / run.seconds
                print(f"step {run.step}  loss {run.loss:.4f}  {rate:.0f} pictures/s", flush=True)
                run.save(saved)
    run.save(saved)


def save_pipeline(
    vae: AutoencoderKLQwenImage, model: TextToVelocity, words: PreTrainedTokenizerFast, out: Path
) -> None:
    """Write the pipeline folder in half precision, with the schedule of Qwen-Image."""
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_image_seq_len=256, max_image_seq_len=8192, base_shift=0.5, max_shift=0.9,
        shift_terminal=0.02, time_shift_type="exponential",
    )  # fmt: skip
    pipe = QwenImagePipeline(
        scheduler=scheduler, vae=vae, text_encoder=model.text_encoder, tokenizer=words, transformer=model.transformer
    )  # fmt: skip
    pipe.to(torch.float16).save_pretrained(out)


def write_prompts(captions: list[str], path: Path) -> None:
    """Write every caption with what the pipeline needs to be told, one JSON object a line."""
    path.write_text("".join(json.dumps({"prompt": caption} | ARGUMENTS) + "\n" for caption in captions))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "model", help="pipeline folder to write")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="data and checkpoints")
    parser.add_argument("--autoencoder-minutes", type=float, default=16)
    parser.add_argument("--minutes", type=float, default=60, help="of training of the transformer")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    return parser.parse_args()


def main() -> None:
    """Train and save the pipeline."""
    args = parse()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    shown, pictures = load(args.work)
    words = tokenizer([emoji.caption for emoji in shown if emoji.learned])
    vae = trained_autoencoder(pictures, args)
    missing = heldout(shown)
    kept = [index for index, emoji in enumerate(shown) if emoji.learned and emoji not in missing]
    emoji, latents = [shown[index] for index in kept], autoencoder.encode(vae, pictures[kept])
    vae = autoencoder.with_statistics(vae, latents)
    run = Training(TextToVelocity(len(words)))
    if args.resume and (args.work / "checkpoint.pt").exists():
        run.resume(args.work / "checkpoint.pt")
    train(run, scaled(vae, latents), *tokenised(words, [*(one.caption for one in emoji), " "]), args)
    save_pipeline(vae, run.average, words, args.out)
    write_prompts([one.caption for one in shown if one.learned], args.out.parent / "prompts.jsonl")
    print(f"saved {args.out}")


if __name__ == "__main__":
    main()
