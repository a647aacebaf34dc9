"""Two streams of different widths leave the blocks, and two latents are stepped at once: a video and its sound."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.calibrate.closed_loop.world import moved, prepared, shards
from tests.pipelines import PIPELINES
from torch import Tensor

from cachesmith.calibrate.closed_loop.axes import AXES, Segment
from cachesmith.calibrate.closed_loop.batch import Batch
from cachesmith.calibrate.closed_loop.design import combinations
from cachesmith.calibrate.closed_loop.fit import SegmentFitter
from cachesmith.calibrate.closed_loop.lanes import Schedule, as_policy, line_weights, of_policy
from cachesmith.calibrate.closed_loop.polish import Polisher
from cachesmith.calibrate.closed_loop.replay import joined, replayed
from cachesmith.calibrate.closed_loop.stack_equations import StackEquations, last_of
from cachesmith.calibrate.fleet.wire import from_bytes, to_bytes
from cachesmith.calibrate.memory.sizes import Width, sizes_of
from cachesmith.calibrate.probe import probe
from cachesmith.runtime import apply
from cachesmith.sampling.metrics import relative_error
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import requests
from cachesmith.sampling.waypoints import waypoints

CHANNELS = (32, 16)
VIDEO, SOUND = 2 * 4 * 4 * 4, 5 * 4
"""Latents of a sample: tokens of 4 each."""

ASKED = [PIPELINES["LTX2Pipeline"].request(i) for i in range(4)]
MASK = Schedule("CCFFCF")
HALVES = Schedule("CFHFCF", "first")
CPU = torch.device("cpu")


@pytest.fixture
def ltx2() -> Iterator[Renderer]:
    with torch.random.fork_rng():
        pipe = PIPELINES["LTX2Pipeline"].pipe()
    yield Renderer(pipe, len(MASK.mask), 8, output_type="latent")


def system_of(batch: Batch, segment: Segment, miss: Tensor | None = None) -> StackEquations:
    base = line_weights(batch.schedule, sum(CHANNELS), CPU)
    end, notes = batch.differentiable(segment.stop, base)
    system = StackEquations(2, batch.schedule, CHANNELS, CPU)
    miss = torch.zeros_like(end) if miss is None else miss
    found = combinations(end, last_of(notes))
    assert len(found) == 4  # every latent of a token, told from those of all other tokens of both streams
    system.add(end, miss, torch.ones(3), batch.folds, notes, found, range(3))
    return system


def own(theta: Tensor, stream: int) -> Tensor:
    return torch.split(theta, [*CHANNELS], -1)[stream].flatten()


def test_a_replay_steps_sound_by_a_scheduler_of_its_own(ltx2: Renderer) -> None:
    """To the bit what the pipeline ends with, and at any step both have been stepped as often."""
    asked = requests(ASKED, 2, 3)
    plain = ltx2.pipe(**ltx2._arguments(asked))
    with replayed(ltx2.pipe, 2, []) as trace:
        again = ltx2.pipe(**ltx2._arguments(asked))
    assert torch.equal(again.frames, plain.frames) and torch.equal(again.audio, plain.audio)
    assert [each.shape for each in trace.latents] == [(2, VIDEO + SOUND)] * 7 and trace.step == 6
    for stop in (1, 3, 6):
        with replayed(ltx2.pipe, 2, trace.results, stop) as part:
            ltx2.pipe(**ltx2._arguments(asked))
        assert part.step == stop and torch.equal(part.latents[-1], trace.latents[stop])


def test_a_step_that_is_taken_twice_is_one() -> None:
    """Cosmos has the scheduler step the halves of guidance, goes a step back, and has it step the whole."""
    tiny = PIPELINES["CosmosTextToWorldPipeline"]
    renderer, asked = Renderer(tiny.pipe(), tiny.steps, 1), requests([tiny.request(0)], 1, 3)
    traces = []
    for stop in (None, 1, 3):
        with replayed(renderer.pipe, 1, [], stop) as trace:
            renderer(asked)
        traces.append(trace.latents)
    whole, *parts = traces
    assert [len(latents) for latents in traces] == [9, 2, 4]
    assert all(torch.equal(a, b) for part in parts for a, b in zip(part, whole, strict=False))
    path = renderer.reference(asked).path
    assert torch.equal(path[0], torch.cat([whole[step] for step in waypoints(tiny.steps)]))


def test_latents_of_several_kinds_count_alike() -> None:
    video, sound = torch.randn(3, 4, 5, 6), torch.randn(3, 7)
    assert joined([video]) is video
    whole = joined([video, sound])
    each = [part.square().flatten(1).mean(1) for part in (video, sound)]
    torch.testing.assert_close(whole.square().mean(1), (each[0] + each[1]) / 2)


def test_what_leaves_the_blocks_is_told(ltx2: Renderer) -> None:
    shape = probe(ltx2, requests(ASKED, 2, 3))
    assert (shape.guidance, shape.channels) == ("batched", CHANNELS) and shape.follower is not None


@pytest.mark.filterwarnings("ignore")
def test_calls_of_other_rows_do_not_follow() -> None:
    """Conditional and unconditional rows in one call, rows with a block perturbed in another."""
    tiny = PIPELINES["LTX2Pipeline (all guidance)"]
    shape = probe(Renderer(tiny.pipe(), 3, 8, output_type="latent"), requests([tiny.request(0)], 2, 3))
    assert (shape.guidance, shape.follower) == ("sequential", None)


def test_memory_is_told_of_all_that_is_stepped(ltx2: Renderer) -> None:
    sizes = sizes_of(ltx2, requests(ASKED, 1, 3)[0])
    assert sizes.streams == (Width(32, 32), Width(5, 16)) and sizes.latents == 4 * (VIDEO + SOUND)
    assert sizes.rows == 2 and sizes.itemsize == 4


@pytest.mark.parametrize(
    ("schedule", "segment"), [(MASK, Segment(1, 4)), (HALVES, Segment(2, 4))], ids=["plain", "halves"]
)
def test_the_equations_of_both_are_the_derivative_of_where_the_segment_ends(
    ltx2: Renderer, schedule: Schedule, segment: Segment
) -> None:
    """Also together: what one stream's weights move, the other's do not."""
    batch = prepared(ltx2, schedule, segment.start, sum(CHANNELS), ASKED)
    generator = torch.Generator().manual_seed(3)
    one, other = torch.randn(2, len(schedule.lanes), AXES, sum(CHANNELS), generator=generator)
    far, wide = moved(batch, segment, torch.zeros(2, *one.shape), [one, other])
    miss = torch.randn(far.shape, generator=generator)
    system = system_of(batch, segment, miss)
    for fold in range(2):
        rows = batch.folds == fold
        found, right = 0.0, 0.0
        for stream, part in enumerate(system.parts):
            part.total()  # has all on the host
            found += float(own(one, stream) @ part.gram[fold] @ own(other, stream))
            right += float(own(one, stream) @ part.right[fold])
        assert found == pytest.approx(float((far * wide)[rows].sum()), rel=1e-3, abs=1e-3)
        assert right == pytest.approx(float((far * miss)[rows].sum()), rel=1e-3, abs=1e-3)


def test_a_unit_of_any_coordinate_moves_the_end_equally_far(ltx2: Renderer) -> None:
    """Of whichever stream, though one has more tokens: the mean square over all latents is 1 / width."""
    segment = Segment(1, 4)
    batch = prepared(ltx2, MASK, segment.start, sum(CHANNELS), ASKED)
    system = system_of(batch, segment)
    factors = system.factors(1e-6)
    generator = torch.Generator().manual_seed(4)
    for stream, factor in enumerate(factors):
        parts = [torch.zeros(1, AXES, each) for each in CHANNELS]
        parts[stream] = torch.randn(1, AXES, CHANNELS[stream], generator=generator)
        phi = factor.T @ parts[stream].flatten()
        along = torch.cat(parts, -1)
        (far,) = moved(batch, segment, torch.zeros(2, *along.shape), [along])
        width = (VIDEO + SOUND) / 32
        assert float(far.square().mean()) == pytest.approx(float(phi.square().sum()) / width, rel=0.01)


def test_equations_of_all_streams_arrive_from_other_processes(ltx2: Renderer) -> None:
    segment = Segment(1, 4)
    system = system_of(prepared(ltx2, MASK, segment.start, sum(CHANNELS), ASKED), segment)
    sent = from_bytes(to_bytes(system))
    found = StackEquations(2, MASK, CHANNELS, CPU).merge(sent)
    target = system.target(torch.zeros(2, 1, AXES, sum(CHANNELS)))
    assert sent.packed and not found.packed and found.width == system.width
    assert torch.equal(found.without(target, 0.1), system.without(target, 0.1))
    assert all(map(torch.equal, found.factors(0.1), system.factors(0.1)))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [MASK, HALVES], ids=["plain", "halves"])
def test_fitted_weights_bring_both_closer_than_lines(ltx2: Renderer, schedule: Schedule) -> None:
    samples = shards(ltx2, 1, 4, asked=ASKED)
    fit = SegmentFitter(samples, schedule, CHANNELS)()
    lines = line_weights(schedule, sum(CHANNELS), CPU)
    plain = drawn(ltx2)
    off = [
        [
            float(relative_error(plain[kind], drawn(ltx2, schedule, rows)[kind]).mean())
            for rows in (lines, fit.rows)
        ]
        for kind in plain
    ]
    assert all(fitted < 0.9 * line for line, fitted in off), off
    known = of_policy(as_policy(schedule, fit.rows, "x", channels=CHANNELS), "default")
    assert known is not None and known[0] == schedule
    used = {step: [letters[step] == "F" for letters in schedule.lanes] for step in fit.rows}
    assert all(torch.equal(known[1][step][used[step]], fit.rows[step][used[step]]) for step in used)


def drawn(renderer: Renderer, schedule: Schedule | None = None, rows: Any = None) -> dict[str, Tensor]:
    """Latents of both kinds of an unseen request."""
    asked = renderer._arguments(requests(ASKED, 2, 900))
    if schedule is None:
        made = renderer.pipe(**asked)
    else:
        with apply(renderer.pipe, as_policy(schedule, rows, "x", channels=CHANNELS)) as session:
            made = renderer.pipe(**asked)
        assert not session.stats.fallbacks
    return {"video": made.frames, "sound": made.audio}


@pytest.mark.slow
def test_gradients_bring_both_closer(ltx2: Renderer) -> None:
    samples = shards(ltx2, 1, 4, asked=ASKED)
    fit = SegmentFitter(samples, MASK, CHANNELS, turns=1, ridges=(1.0,))()
    polisher = Polisher(samples, fit, size=4)
    rows = polisher(6)
    assert polisher.losses[-1] < polisher.losses[0]
    for step in rows:
        parts = zip(*(torch.split(each[step], [*CHANNELS], -1) for each in (rows, fit.rows)), strict=True)
        assert all(not torch.equal(after, before) for after, before in parts)
