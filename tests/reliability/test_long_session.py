"""A session that serves for long holds what it held after its first thousand requests.

`python -m tests.reliability.test_long_session COUNT` prints the figures of docs/reliability.md.
"""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import diffusers
import pytest
import torch

from cachesmith.policies import preset
from cachesmith.runtime import apply

STEPS = 8
PARTS = 10
"""Of a campaign: memory is read after each."""


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def network() -> diffusers.DiTTransformer2DModel:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=1,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=4,
        norm_num_groups=1,
    ).eval()


@torch.no_grad()
def campaign(count: int, gate: str = "taylorseer-lite") -> Iterator[tuple[int, int, int]]:
    """Make `count` requests under a preset in one session; tell, ten times, how many, the bytes held and the objects
    that Python has allocated."""
    transformer, scheduler = network(), diffusers.DDIMScheduler()
    latents, label = torch.randn(1, 4, 4, 4), torch.zeros(1, dtype=torch.int64)
    with apply(transformer, preset(gate), scheduler=scheduler) as session:
        for number in range(1, count + 1):
            scheduler.set_timesteps(STEPS)
            x = latents + number / count
            for t in scheduler.timesteps:
                x = scheduler.step(transformer(x, t[None], class_labels=label).sample, t, x).prev_sample
            if number % (count // PARTS) == 0:
                gc.collect()
                yield number, resident(), sys.getallocatedblocks()
    assert session.stats.forecast and not session.stats.fallbacks


@pytest.mark.slow
def test_memory_is_constant_over_ten_thousand_requests() -> None:
    held = [blocks for number, _, blocks in campaign(10_000) if number >= 2000]
    assert max(held) - held[0] < 2000


if __name__ == "__main__":
    for number, size, blocks in campaign(int(sys.argv[1])):
        print(number, f"{size / 2**20:.1f} MiB, {blocks:,} blocks", flush=True)
