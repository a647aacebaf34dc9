"""Settings of `peers.py` side by side and playing, for a pipeline that draws videos: an animated sheet.

    python benchmarks/side_by_side.py examples/moving_wan/model --prompts examples/moving_wan/prompts.jsonl \\
        --policy examples/moving_wan/moving.policy.safetensors --setting 'calibrated balanced' \\
        --setting 'UniPC, 10 steps' --out benchmarks/moving_wan/side_by_side.gif

The rows are the uncached videos, then each setting and how it differs. A setting is named as in the table of
`peers.py`; of a profile its name is enough. Prompts and seeds are the first held-out ones of that table.
"""

import argparse
from pathlib import Path

from contest.contestant import Contestant, Course, Dial, nothing
from contest.yardstick import play
from peers import FAMILIES, course, entries
from PIL import Image

from cachesmith.files import replacing
from cachesmith.policies import CachesmithError
from cachesmith.sampling.sheet import sheet

PAUSE, LAST = 150, 900
"""Milliseconds that a frame is shown, and the last one."""


def find(run: Course, name: str) -> Contestant:
    """Return a setting by its name; raises `CachesmithError` where there is none."""
    for entry in entries(run, FAMILIES, None):
        start, _, end = entry.name.partition("{}")
        if isinstance(entry, Dial):
            if name.startswith(start) and name.endswith(end):
                return entry.at(float(name.removeprefix(start).removesuffix(end)))
        elif entry.name == name or entry.name.startswith(f"{name} ("):
            return entry
    raise CachesmithError(f"{name!r} is no setting of peers.py; take a name of its table")


def parse() -> argparse.Namespace:
    """Read the command line; what `peers.py` needs to make its course is set as there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--setting", action="append", required=True)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True, help="a .gif file")
    parser.set_defaults(
        guidance_scale=None, call=[], screen=8, steps=50, batch=8, budgets=[8, 10, 14],
        dtype="float32", device="cpu",
    )  # fmt: skip
    return parser.parse_args()


def main() -> None:
    """Sample and write the animation."""
    args = parse()
    run = course(args)
    chosen = {"uncached": Contestant("uncached", "uncached", "uncached", nothing)}
    chosen |= {name: find(run, name) for name in args.setting}
    videos = {name: play(run.renderer, entry, run.requests)[0].images for name, entry in chosen.items()}
    frames = next(iter(videos.values())).shape[1]
    shown = [
        sheet({n: v[:, i] for n, v in videos.items()}, columns=args.samples, smallest=64).quantize(
            dither=Image.Dither.NONE
        )
        for i in range(frames)
    ]
    with replacing(args.out) as part:
        pauses = [PAUSE] * (frames - 1) + [LAST]
        shown[0].save(part, "GIF", save_all=True, append_images=shown[1:], duration=pauses, loop=0)


if __name__ == "__main__":
    main()
