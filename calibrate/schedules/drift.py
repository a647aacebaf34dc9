"""How errors grow until a run ends, measured: a few early steps are forecast, and all others are computed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cachesmith.calibrate.closed_loop.batch import Uncached
from cachesmith.calibrate.closed_loop.lanes import Rows, Schedule, line_weights
from cachesmith.calibrate.closed_loop.loop import Loop, Past, attached
from cachesmith.calibrate.closed_loop.replay import replayed
from cachesmith.sampling.out_of_memory import in_memory
from cachesmith.sampling.render import Renderer, device_of

COMPUTED = 3
"""Steps before the forecast ones: two for a line, and one after the first, at which paths turn most."""

_FORECAST = 1 / 16
"""Of the steps of a run: enough for an error well above rounding, and few enough for a small one."""


def nudged(steps: int, starts: tuple[int, ...] = (0,)) -> Schedule | None:
    """The schedule that forecasts a few early steps of a run; None where there are none to forecast.

    starts: see `Schedule`.
    """
    forecast = max(1, int(_FORECAST * (steps - starts[0])))
    mask = ("-" * starts[0] + "C" * COMPUTED + "F" * forecast).ljust(steps, "C")[:steps]
    mask = "".join("C" if step in starts else letter for step, letter in enumerate(mask))
    return Schedule(mask, None, starts) if "F" in mask else None


@torch.no_grad()
def drift(
    renderer: Renderer, samples: Sequence[Uncached], schedule: Schedule, channels: tuple[int, ...]
) -> Tensor:
    """Mean squared error of every sample's latents when they enter each step, and at the end: [N, steps + 1].

    Forecasts are by a line. channels: of each stream.
    """
    rows = line_weights(schedule, sum(channels), device_of(renderer.pipe))
    _, found = in_memory(samples, lambda batch: _of_batch(renderer, batch, schedule, rows))
    return torch.cat(found)


def _of_batch(renderer: Renderer, batch: Uncached, schedule: Schedule, rows: Rows) -> Tensor:
    loop = Loop(schedule.mask, rows, Past(), None)
    replay = replayed(renderer.pipe, len(batch), [], len(schedule.mask), batch.prompts)
    with attached(renderer.pipe, schedule, loop), replay as trace:
        renderer(batch.requests)
    misses = (
        (latents.float().cpu() - uncached).square().flatten(1).mean(1)
        for latents, uncached in zip(trace.latents, batch.path.float().unbind(1), strict=True)
    )
    return torch.stack([*misses], 1)


def growth(errors: Tensor, schedule: Schedule) -> Tensor:
    """What a squared error before each point of a path is multiplied by until its end: [points].

    errors: squared, of runs on `schedule` [N, points]. Samples differ, and those in which errors grow most count most:
    it is their fourth-power mean. Before the last forecast step is over, it is that from there.
    Where it is not finite, it is 1.
    """
    made = schedule.mask.rindex("F") + 1
    factors = (errors[:, -1:] / errors).double().nan_to_num(1.0, 1.0)
    factors[:, :made] = factors[:, made : made + 1]
    mean: Tensor = factors.square().mean(0).sqrt()
    return mean
