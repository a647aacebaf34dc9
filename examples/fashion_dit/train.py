"""Train the demo model: a class-conditional latent DiT on Fashion-MNIST, as a diffusers pipeline folder.

    python examples/fashion_dit/train.py            # about an hour on 2 CPU cores
    python examples/fashion_dit/train.py --resume   # go on where an interrupted run stopped

Two stages: an autoencoder (32x32 grey -> 2x16x16 latents), then a DiT on its latents (v-prediction, EMA).
The result is `model/`, half-precision safetensors, loaded by `DiffusionPipeline.from_pretrained`.
"""

import argparse
import copy
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from data import CLASSES, load, to_float
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from rich.progress import track
from torch import Tensor, nn

HERE = Path(__file__).parent
NULL_CLASS = 1000  # DiTPipeline's unconditional label
LABEL_DROPOUT = 0.1


def build_vae() -> AutoencoderKL:
    """Return an untrained autoencoder: 1x32x32 pixels <-> 2x16x16 latents."""
    return AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=2, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, mid_block_add_attention=False,
    )  # fmt: skip


def build_dit() -> DiTTransformer2DModel:
    """Return an untrained DiT: 8 blocks, width 192, 64 tokens."""
    return DiTTransformer2DModel(
        num_attention_heads=3, attention_head_dim=64, num_layers=8,
        in_channels=2, out_channels=2, sample_size=16, patch_size=2,
        num_embeds_ada_norm=NULL_CLASS, activation_fn="gelu-approximate",
    )  # fmt: skip


def train_vae(images: Tensor, steps: int, batch: int = 64) -> AutoencoderKL:
    """Fit the autoencoder by L1 + squared error + a small KL term, and set its scaling factor."""
    vae = build_vae().train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in track(range(steps), "autoencoder"):
        pixels = to_float(images[torch.randint(len(images), (batch,))])
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            decoded = vae.decode(posterior.sample()).sample.float()
        error = F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels)
        (error + 1e-5 * posterior.kl().float().mean()).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    vae.eval()
    with torch.no_grad():
        latents = vae.encode(to_float(images[:2048])).latent_dist.sample()
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every picture's posterior, in the DiT's scaled units."""
    parts = [vae.encode(to_float(chunk)).latent_dist for chunk in images.split(1000)]
    scale = vae.config.scaling_factor
    return scale * torch.cat([p.mean for p in parts]), scale * torch.cat([p.std for p in parts])


def init_dit(dit: DiTTransformer2DModel) -> None:
    """Zero the adaLN gates and the last layer (DiT, section 3.2: adaLN-Zero)."""
    for block in dit.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(block.norm1.linear.bias)
    for layer in (dit.proj_out_1, dit.proj_out_2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def learning_rate(step: int, steps: int) -> float:
    """Warm up over 200 steps, then a cosine down to 2 percent."""
    return min(1.0, (step + 1) / 200) * (0.51 + 0.49 * math.cos(math.pi * step / steps))


def train_dit(vae: AutoencoderKL, data: tuple[Tensor, Tensor], args: argparse.Namespace) -> nn.Module:
    """Train on cached latents, writing `checkpoint.pt` every 250 steps; return the averaged weights."""
    (mean, std), labels = encode(vae, data[0]), data[1]
    noise_scheduler = scheduler()
    dit = build_dit()
    init_dit(dit)
    average = copy.deepcopy(dit).requires_grad_(False)
    optimizer = torch.optim.AdamW(dit.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    first = 0
    if args.resume and (args.work / "checkpoint.pt").exists():
        saved = torch.load(args.work / "checkpoint.pt", weights_only=True)
        dit.load_state_dict(saved["dit"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    forward = torch.compile(dit) if args.compile else dit
    began, running = time.monotonic(), 0.0
    for step in track(range(first, args.steps), "transformer", total=args.steps, completed=first):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * learning_rate(step, args.steps)
        index = torch.randint(len(labels), (args.batch,))
        latents = mean[index] + std[index] * torch.randn_like(mean[index])
        noise = torch.randn_like(latents)
        timesteps = torch.randint(1000, (args.batch,))
        classes = torch.where(torch.rand(args.batch) < LABEL_DROPOUT, NULL_CLASS, labels[index])
        with torch.autocast("cpu", torch.bfloat16):
            noisy = noise_scheduler.add_noise(latents, noise, timesteps)
            predicted = forward(noisy, timestep=timesteps, class_labels=classes).sample
        target = noise_scheduler.get_velocity(latents, noise, timesteps)
        loss = F.mse_loss(predicted.float(), target)
        loss.backward()
        nn.utils.clip_grad_norm_(dit.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.9992, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.parameters()), list(dit.parameters()), 1 - decay)
        running = 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            rate = (step + 1 - first) * args.batch / (time.monotonic() - began)
            print(f"step {step + 1}/{args.steps}  loss {running:.4f}  {rate:.0f} pictures/s", flush=True)
            state = {"dit": dit.state_dict(), "average": average.state_dict()}
            save_atomically(state | {"optimizer": optimizer.state_dict(), "step": step + 1}, args.work)
    return average


def save_atomically(state: dict, folder: Path) -> None:
    """Write `checkpoint.pt` through a temporary file, so that an interrupt never truncates it."""
    torch.save(state, folder / "checkpoint.tmp")
    (folder / "checkpoint.tmp").replace(folder / "checkpoint.pt")


def scheduler() -> DDIMScheduler:
    """Return the sampler the model is trained for."""
    return DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
        prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


def save_pipeline(vae: AutoencoderKL, dit: nn.Module, out: Path) -> None:
    """Write the pipeline folder in half precision."""
    names = dict(enumerate(CLASSES))
    pipe = DiTPipeline(transformer=dit, vae=vae, scheduler=scheduler())
    pipe.register_to_config(id2label=names)  # the constructor does not keep them
    pipe.to(torch.float16).save_pretrained(out)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "model", help="pipeline folder to write")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="data and checkpoints")
    parser.add_argument("--vae-steps", type=int, default=900)
    parser.add_argument("--steps", type=int, default=2000, help="transformer optimisation steps")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the transformer (about 20%% faster)"
    )
    return parser.parse_args()


def main() -> None:
    """Train both stages and save the pipeline."""
    args = parse()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    data = load(args.work, "train")
    if args.resume and (args.work / "vae").exists():
        vae = AutoencoderKL.from_pretrained(args.work / "vae").eval()
    else:
        vae = train_vae(data[0], args.vae_steps)
        vae.save_pretrained(args.work / "vae")
    dit = train_dit(vae.requires_grad_(False), data, args)
    save_pipeline(vae, dit, args.out)
    print(f"saved {args.out}")


if __name__ == "__main__":
    main()
