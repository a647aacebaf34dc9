"""The recording stage: run fitting prompts uncached, and turn what was seen into schedules, scales and their fit."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from cachesmith.calibrate.config import CalibrationConfig
from cachesmith.calibrate.fit.scales import (
    ScaleFit,
    fit_correction,
    fit_scale,
    forecast_costs,
    plan_schedules,
)
from cachesmith.calibrate.fit.subspace import bases, second_moment
from cachesmith.calibrate.guidance import Guidance, guidance_of
from cachesmith.calibrate.record.channel_recorder import runs
from cachesmith.calibrate.record.channels import FEWEST, cluster_all, joined, temporal_gram
from cachesmith.calibrate.record.recorder import Recorder, joined_sketches, lane_names
from cachesmith.calibrate.search.space import Recorded, segments
from cachesmith.policies import Modules, PolicyError, Stack, UnitFit, Units
from cachesmith.policies.base import Arrays
from cachesmith.progress import stage
from cachesmith.runtime import watch
from cachesmith.runtime.models.units import block_lists
from cachesmith.runtime.pipeline_call import PipelineCall
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request

RECORDED_SAMPLES = 8
CHANNEL_SAMPLES = 4
"""Requests whose channels are clustered and decomposed."""

ENERGY = 0.99
"""Share of the outputs' changes over `DISTANCE` steps that the recorded subspaces hold."""

DISTANCE = 5

BINS = 10


@dataclass(frozen=True)
class Recording:
    """What later stages read: the search space's data, goodness of fit, per-lane scales over time, guidance seen.

    stack: number of streams of the whole stack, and of their channels. grams: how the stack's channels move, by lane
    and request (`calibrate.channels.record_grams`); empty for runs of few steps. calls: the pipeline's, as asked for.
    """

    space: Recorded
    stack: tuple[int, int]
    fits: tuple[UnitFit, ...]
    scales: dict[str, ScaleFit]
    guidance: Guidance
    calls: tuple[PipelineCall, ...]
    grams: dict[str, Tensor]


def record(renderer: Renderer, requests: tuple[Request, ...], config: CalibrationConfig) -> Recording:
    """Sample a few fitting requests uncached at every granularity and fit what can be fitted from that."""
    transformer = renderer.pipe.transformer
    blocks = len(block_lists(transformer))
    chosen = requests[:RECORDED_SAMPLES]
    arrays: Arrays = {}
    scales: dict[str, ScaleFit] = {}
    granularities: tuple[Units, ...] = (Stack(), segments(blocks, 2), Modules())
    coarse = granularities[:2]
    recorders: list[Recorder] = []
    channels = chosen[:CHANNEL_SAMPLES]
    with stage("record", len(chosen) * len(granularities) + len(channels) * len(coarse)) as advance:
        for units in granularities:
            recorder = Recorder(sketch=units == Stack(), seed=config.seed)
            with watch(renderer.pipe, units, recorder):
                renderer(chosen, advance)
            recorders.append(recorder)
            _fit(recorder, units, lane_names(transformer, units), config.steps, arrays, scales)
        grams: dict[Units, dict[str, Tensor]] = {}
        for units in coarse:
            grams[units] = _fit_channels(renderer, channels, units, arrays)
            advance(len(channels))
    schedules = plan(recorders[0], config)
    fits = tuple(
        UnitFit(lane=n, scale=float(f.scales.mean()), spread=f.spread, r2=f.r2) for n, f in scales.items()
    )
    guidance = guidance_of(recorders[0].branches, _rows(recorders[0]), len(chosen))
    space = Recorded(schedules, arrays, blocks)
    return Recording(
        space, _stack_shape(recorders[0]), fits, scales, guidance, tuple(recorders[0].calls), grams[Stack()]
    )


def plan(recorder: Recorder, config: CalibrationConfig) -> dict[int, str]:
    """Schedules for every budget from 2 to half the steps, by dynamic programming on the recorded stack outputs."""
    sketches = next(iter(recorder.sketches.values()))
    features = joined_sketches(sketches, config.steps)
    cost = forecast_costs(features, [float(i) for i in range(config.steps)])
    return plan_schedules(cost, range(2, config.steps // 2 + 1))


def _fit(
    recorder: Recorder,
    units: Units,
    lanes: list[str],
    steps: int,
    arrays: Arrays,
    scales: dict[str, ScaleFit],
) -> None:
    fits = [fit_scale(recorder.movements[lane], steps, BINS) for lane in lanes]
    corrections = [fit_correction(recorder.movements[lane], steps, BINS) for lane in lanes]
    arrays[f"scales/{units.kind}"] = torch.stack([f.scales for f in fits]).float().numpy()
    arrays[f"corrections/{units.kind}"] = torch.stack(corrections).float().numpy()
    scales.update(zip(lanes, fits, strict=True))


def _stack_shape(recorder: Recorder) -> tuple[int, int]:
    widths = list(recorder.channels.values())
    if len(set(widths)) > 1:
        raise PolicyError(
            f"streams of different widths {widths} cannot be calibrated together; file an issue"
        )
    return len(widths), widths[0]


def _fit_channels(
    renderer: Renderer, requests: tuple[Request, ...], units: Units, arrays: Arrays
) -> dict[str, Tensor]:
    """Clusters of channels and principal subspaces; none for runs too short to tell channels apart.

    Returns lane -> Gram matrices [requests, channels, steps, steps].
    """
    if renderer.steps < max(FEWEST, DISTANCE + 1):
        return {}
    grams: dict[str, list[Tensor]] = defaultdict(list)
    moments: dict[str, list[Tensor]] = defaultdict(list)
    for run in runs(renderer, requests, units):
        for lane, outputs in run.items():
            grams[lane].append(temporal_gram(outputs))
            moments[lane].append(second_moment(outputs, DISTANCE))
    stacked = {lane: torch.stack(each) for lane, each in grams.items()}
    arrays[f"clusters/{units.kind}"], _ = cluster_all(joined(stacked), None)
    total = {lane: torch.stack(each).sum(0) for lane, each in moments.items()}
    arrays[f"basis/{units.kind}"] = bases(total, ENERGY).numpy()
    return stacked


def _rows(recorder: Recorder) -> int:
    """Rows of the first step's calls, summed over the runs: their number of samples varies."""
    outputs = next(iter(recorder.sketches.values()))
    return sum(len(output) for (_, _, step), output in outputs.items() if step == 0)
