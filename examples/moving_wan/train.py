"""Train a small Wan 2.2: captions to clips of moving Fashion-MNIST items, as a `WanPipeline` folder with two experts.

    python examples/moving_wan/train.py            # goes on where an interrupted run stopped

Four stages: the autoencoder (`autoencoder.py`), one transformer with its text encoder on all noise levels, two copies
of it, each on one side of the boundary, with the text encoder as it is, and the decoder alone. The transformers learn
velocity = noise - clip (rectified flow); what is kept are averaged weights.
The result is `model/`, half-precision safetensors, loaded by `DiffusionPipeline.from_pretrained`.
"""

import argparse
import copy
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from autoencoder import encode, sharpen
from autoencoder import train as train_autoencoder
from clips import DIRECTIONS, TOKENS, captions, paths, render, tokenizer
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
from experts import BOUNDARY, FLOW_SHIFT, TextToVelocity, noise_levels
from optimizer import Optimizer, learning_rate
from rich.progress import track
from torch import Tensor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "fashion_dit"))
from data import CLASSES, load  # noqa: E402

CAPTION_DROPOUT = 0.1
Data = tuple[Tensor, Tensor]
"""Latents [N, C, T, H, W] and token ids [N + 1, TOKENS]; the last row is the empty caption."""


@torch.no_grad()
def dataset(vae: AutoencoderKLWan, images: Tensor, labels: Tensor, clips: int) -> Data:
    """Encode `clips` clips: every picture in turn, on a path and in a direction of its own."""
    texts, parts, wanted = captions(), [], []
    for chunk in track(torch.arange(clips).split(500), "latents"):
        directions, pictures = torch.randint(len(DIRECTIONS), chunk.shape), chunk % len(images)
        parts.append(encode(vae, render(images[pictures], paths(directions))))
        wanted += [texts[d * len(CLASSES) + c] for d, c in zip(directions, labels[pictures], strict=True)]
    tokens = tokenizer()(
        [*wanted, ""], padding="max_length", max_length=TOKENS, return_tensors="pt"
    ).input_ids
    return torch.cat(parts), tokens


def fit(
    model: TextToVelocity, data: Data, levels: tuple[float, float], name: str, args: argparse.Namespace
) -> None:
    """Train for `args.steps[name]` steps between two noise levels; the averaged weights end up in `model`.

    `<name>.pt` is written every 100 steps, and read first.
    """
    latents, tokens = data
    steps, saved = args.steps[name], args.work / f"{name}.pt"
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = Optimizer(model, args.rate, inner=lambda name, p: ".blocks." in name and p.ndim == 2)
    first = 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    began, running = time.process_time(), 1.0
    for step in track(range(first, steps), name, total=steps, completed=first):
        index = torch.randint(len(latents), (args.batch,))
        dropped = torch.rand(args.batch, 1) < CAPTION_DROPOUT
        noise, level = torch.randn(args.batch, *latents.shape[1:]), noise_levels(args.batch, *levels)
        noisy = torch.lerp(latents[index], noise, level.view(-1, 1, 1, 1, 1))
        velocity = model(noisy, level, torch.where(dropped, tokens[-1], tokens[index]))
        loss = F.mse_loss(velocity, noise - latents[index])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(learning_rate(step, steps))
        decay = min(0.998, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        running = 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            rate = (step + 1 - first) * args.batch / (time.process_time() - began)
            print(f"{name} {step + 1}/{steps}  loss {running:.4f}  {rate:.0f} clips a CPU second", flush=True)
            state = {"model": model.state_dict(), "average": average.state_dict(), "step": step + 1}
            torch.save(state | {"optimizer": optimizer.state_dict()}, args.work / "tmp")
            (args.work / "tmp").replace(saved)
    model.load_state_dict(average.state_dict())


def save_pipeline(vae: AutoencoderKLWan, high: TextToVelocity, low: TextToVelocity, out: Path) -> None:
    """Write the pipeline folder in half precision."""
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT
    )
    pipe = WanPipeline(
        tokenizer=tokenizer(),
        text_encoder=high.text_encoder,
        vae=vae,
        scheduler=scheduler,
        transformer=high.transformer,
        transformer_2=low.transformer,
        boundary_ratio=BOUNDARY,
    )
    for part in (vae, high.transformer, low.transformer, high.text_encoder):
        part.half()
    pipe.save_pretrained(out)
    for path in out.rglob("config.json"):  # diffusers notes the folder that a part was loaded from
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2) + "\n")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "model", help="pipeline folder to write")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="data and checkpoints")
    parser.add_argument("--autoencoder-steps", type=int, default=1500)
    parser.add_argument("--decoder-steps", type=int, default=260, help="of the decoder alone, in the end")
    parser.add_argument("--clips", type=int, default=30_000, help="clips to encode")
    parser.add_argument(
        "--shared-steps", type=int, default=1500, help="of one transformer on all noise levels"
    )
    parser.add_argument("--expert-steps", type=int, default=250, help="of each expert on its own")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--rate", type=float, default=2e-3)
    args = parser.parse_args()
    args.steps = {"shared": args.shared_steps, "high": args.expert_steps, "low": args.expert_steps}
    return args


def main() -> None:
    """Train what is not trained yet, and save the pipeline."""
    args = parse()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    images, labels = load(args.work, "train")
    if not (args.work / "vae").exists():
        train_autoencoder(images, args.autoencoder_steps).save_pretrained(args.work / "vae")
    vae = AutoencoderKLWan.from_pretrained(args.work / "vae").eval()
    data = dataset(vae, images, labels, args.clips)
    shared = TextToVelocity(len(tokenizer()))
    fit(shared, data, (0.0, 1.0), "shared", args)
    shared.text_encoder.requires_grad_(False)
    high, low = copy.deepcopy(shared), copy.deepcopy(shared)
    fit(high, data, (BOUNDARY, 1.0), "high", args)
    fit(low, data, (0.0, BOUNDARY), "low", args)
    sharpen(vae, images, args.decoder_steps)
    save_pipeline(vae, high, low, args.out)
    print(f"saved {args.out}")


if __name__ == "__main__":
    main()
