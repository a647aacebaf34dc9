"""Train a small FLUX on Fashion-MNIST: text to picture by flow matching, as an ordinary `FluxPipeline` folder.

    python examples/fashion_flux/train.py            # about an hour on 2 CPU cores
    python examples/fashion_flux/train.py --resume   # go on where an interrupted run stopped

The autoencoder is that of `examples/fashion_dit`. The transformer (3 double and 6 single blocks) and two small text
encoders (T5 for the tokens, CLIP for the pooled vector) learn together from captions such as "a dark ankle boot".
The result is `model/`, half-precision safetensors, loaded by `DiffusionPipeline.from_pretrained`.
"""

import argparse
import copy
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from captions import TOKENS, captions, tokenizer
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from rich.progress import track
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "fashion_dit"))
from data import load, to_float  # noqa: E402

TEXT_WIDTH = 64
CAPTION_DROPOUT = 0.1


class TextToVelocity(nn.Module):
    """Everything that is trained: two text encoders and the transformer."""

    def __init__(self, vocabulary: int, end: int):
        super().__init__()
        self.text_encoder = CLIPTextModel(CLIPTextConfig(
            vocab_size=vocabulary, hidden_size=TEXT_WIDTH, intermediate_size=128, projection_dim=TEXT_WIDTH,
            num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=TOKENS,
            bos_token_id=1, eos_token_id=end, pad_token_id=0,
        ))  # fmt: skip
        self.text_encoder_2 = T5EncoderModel(T5Config(
            vocab_size=vocabulary, d_model=TEXT_WIDTH, d_kv=32, d_ff=128, num_layers=1, num_heads=2,
            dropout_rate=0.0,
        ))  # fmt: skip
        self.transformer = FluxTransformer2DModel(
            patch_size=1, in_channels=8, num_layers=3, num_single_layers=6,
            attention_head_dim=64, num_attention_heads=3, axes_dims_rope=(16, 24, 24),
            joint_attention_dim=TEXT_WIDTH, pooled_projection_dim=TEXT_WIDTH, guidance_embeds=False,
        )  # fmt: skip
        init_transformer(self.transformer)

    def forward(self, packed: Tensor, sigma: Tensor, tokens: Tensor, image_ids: Tensor) -> Tensor:
        """Return the velocity [B, 64, 8] of packed latents at noise level `sigma` [B]."""
        velocity: Tensor = self.transformer(
            packed,
            timestep=sigma,
            encoder_hidden_states=self.text_encoder_2(tokens)[0],
            pooled_projections=self.text_encoder(tokens).pooler_output,
            txt_ids=torch.zeros(TOKENS, 3),
            img_ids=image_ids,
        ).sample
        return velocity


def init_transformer(transformer: FluxTransformer2DModel) -> None:
    """Zero the modulations and the last layer (DiT, section 3.2: adaLN-Zero)."""
    blocks = transformer.transformer_blocks
    singles = transformer.single_transformer_blocks
    layers = [norm.linear for b in blocks for norm in (b.norm1, b.norm1_context)]
    layers += [b.norm.linear for b in singles]
    for layer in (*layers, transformer.norm_out.linear, transformer.proj_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Return every picture's scaled mean latent, packed as the pipeline packs: [N, 64, 8]."""
    means = torch.cat([vae.encode(to_float(chunk)).latent_dist.mode() for chunk in images.split(1000)])
    latents = vae.config.scaling_factor * means
    packed: Tensor = FluxPipeline._pack_latents(latents, len(latents), *latents.shape[1:])
    return packed


def learning_rate(step: int, steps: int) -> float:
    """Warm up over 150 steps, then a cosine down to 2 percent."""
    return min(1.0, (step + 1) / 150) * (0.51 + 0.49 * math.cos(math.pi * step / steps))


def noise_levels(count: int) -> Tensor:
    """Draw sigmas from a logit-normal distribution (SD3, arXiv 2403.03206, section 3.1)."""
    return torch.sigmoid(torch.randn(count))


def train(latents: Tensor, tokens: Tensor, model: TextToVelocity, args: argparse.Namespace) -> TextToVelocity:
    """Fit velocity = noise - picture, writing `checkpoint.pt` every 200 steps; return the averaged weights."""
    unknown, image_ids = tokens[-1], FluxPipeline._prepare_latent_image_ids(1, 8, 8, "cpu", torch.float32)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    first, saved = 0, args.work / "checkpoint.pt"
    if args.resume and saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    began, running = time.monotonic(), 1.0
    for step in track(range(first, args.steps), "transformer", total=args.steps, completed=first):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * learning_rate(step, args.steps)
        index = torch.randint(len(latents), (args.batch,))
        dropped = torch.rand(args.batch, 1) < CAPTION_DROPOUT
        noise, sigma = torch.randn(args.batch, *latents.shape[1:]), noise_levels(args.batch)
        noisy = torch.lerp(latents[index], noise, sigma[:, None, None])
        with torch.autocast("cpu", torch.bfloat16):
            velocity = model(noisy, sigma, torch.where(dropped, unknown, tokens[index]), image_ids)
        loss = F.mse_loss(velocity.float(), noise - latents[index])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.999, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        running = 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 200 == 0 or step + 1 == args.steps:
            rate = (step + 1 - first) * args.batch / (time.monotonic() - began)
            print(f"step {step + 1}/{args.steps}  loss {running:.4f}  {rate:.0f} pictures/s", flush=True)
            state = {"model": model.state_dict(), "average": average.state_dict()}
            torch.save(state | {"optimizer": optimizer.state_dict(), "step": step + 1}, args.work / "tmp")
            (args.work / "tmp").replace(saved)
    return average


def save_pipeline(vae: AutoencoderKL, model: TextToVelocity, out: Path) -> None:
    """Write the pipeline folder in half precision."""
    vae.register_to_config(shift_factor=0.0)
    words = tokenizer()
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=words,
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=words,
        transformer=model.transformer,
    )
    pipe.to(torch.float16).save_pretrained(out)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "model", help="pipeline folder to write")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="data and checkpoints")
    parser.add_argument("--autoencoder", type=Path, default=HERE.parent / "fashion_dit" / "model" / "vae")
    parser.add_argument("--steps", type=int, default=2400, help="optimisation steps")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    return parser.parse_args()


def main() -> None:
    """Train and save the pipeline."""
    args = parse()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    images, labels = load(args.work, "train")
    vae = AutoencoderKL.from_pretrained(args.autoencoder, torch_dtype=torch.float32).eval()
    words = tokenizer()
    texts = [*captions(images, labels), ""]
    tokens = words(texts, padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
    model = TextToVelocity(len(words), words.eos_token_id)
    model = train(encode(vae, images), tokens, model, args)
    save_pipeline(vae, model, args.out)
    print(f"saved {args.out}")


if __name__ == "__main__":
    main()
