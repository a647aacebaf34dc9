"""Closed-loop fitting: the trained rows and the runtime agree, and training lowers the error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import sample_flux, tiny_dit, tiny_flux
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from cachesmith.calibrate.fit.solvers import errors
from cachesmith.calibrate.record.channels import record_grams
from cachesmith.calibrate.tune import checkpoint
from cachesmith.calibrate.tune import tune as tune_module
from cachesmith.calibrate.tune.rows import Rows, fitted_rows, line, starting_rows
from cachesmith.calibrate.tune.tune import Batch, Trainer, attached, tune
from cachesmith.policies import Follower, Stack, computations
from cachesmith.runtime import apply, watch
from cachesmith.sampling.evaluate import Evaluator
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import requests

STEPS = 10
MASK = "CCFFCFFCFF"
LANES, CHANNELS = 1, 32


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    renderer = Renderer(tiny_dit(), STEPS, guidance_scale=1.5)
    return Evaluator(renderer, requests([{"class_labels": i} for i in range(4)], 4, 0))


KINDS: list[tuple[str, Follower | None]] = [
    (MASK, None), ("CHFFCFHFCF", "first"), ("CHFFCFHFCF", "second"),
]  # fmt: skip


@pytest.mark.parametrize(("mask", "follower"), KINDS)
def test_starting_rows_are_the_line(evaluator: Evaluator, mask: str, follower: Follower | None) -> None:
    straight = evaluator(line(mask, follower))
    fitted = evaluator(starting_rows(mask, 3, (LANES, CHANNELS), {}, None, follower).policy(mask, "t"))
    assert torch.allclose(straight.pictures.images, fitted.pictures.images, atol=1e-5)
    assert fitted.nfc == computations(mask)


@pytest.mark.parametrize(("mask", "follower"), KINDS)
def test_trainer_and_runtime_give_the_same_pictures(
    evaluator: Evaluator, mask: str, follower: Follower | None
) -> None:
    rows = starting_rows(mask, 3, (LANES, CHANNELS), {}, None, follower)
    lanes = LANES if follower is None else 2 * LANES
    generator = torch.Generator().manual_seed(0)
    used = rows.outputs != 0
    disturbed = Rows(
        rows.outputs + 0.05 * used * torch.randn(rows.outputs.shape, generator=generator),
        torch.cat(
            [
                0.01 * used * torch.randn(rows.outputs.shape, generator=generator),
                torch.full((lanes, STEPS, 1, CHANNELS), 0.01),
            ],
            2,
        ),
        follower,
    )
    runner = Trainer(mask, disturbed)
    with torch.no_grad(), attached(evaluator.renderer.pipe, runner):
        trained = evaluator.renderer(evaluator.requests).images
    policy = disturbed.policy(mask, "t")
    assert torch.allclose(trained, evaluator(policy).pictures.images, atol=1e-5)
    found = fitted_rows(policy, mask)
    assert found is not None and found.follower == follower and torch.equal(found.outputs, disturbed.outputs)


def tuned(evaluator: Evaluator, unfinished: Path, advance: Callable[[float], None]) -> Rows:
    start = starting_rows(MASK, 3, (LANES, CHANNELS), {}, None)
    batches = [Batch(evaluator.requests, evaluator.reference.images, evaluator.path)] * 6
    return tune(evaluator.renderer, batches, MASK, start, 0.01, advance, unfinished)


def test_tuning_lowers_the_closed_loop_error(evaluator: Evaluator, tmp_path: Path) -> None:
    start = starting_rows(MASK, 3, (LANES, CHANNELS), {}, None)
    losses: list[float] = []
    rows = tuned(evaluator, tmp_path / "unfinished", losses.append)
    assert min(losses[1:]) < losses[0]
    assert not torch.equal(rows.outputs, start.outputs)
    assert all(p.requires_grad for p in evaluator.renderer.pipe.transformer.parameters())


def test_tuning_stays_closer_to_the_path_than_by_pictures_alone(
    evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strayed(part: float) -> float:
        monkeypatch.setattr(tune_module, "PATH", part)
        rows = tuned(evaluator, tmp_path / "unfinished", lambda _: None)
        (tmp_path / "unfinished").unlink(missing_ok=True)
        with torch.no_grad(), watch(evaluator.renderer.pipe, Stack(), Trainer(MASK, rows)):
            _, path = evaluator.renderer.walk(evaluator.requests)
        return (path - evaluator.path).square().mean().item()

    assert strayed(tune_module.PATH) < strayed(0.0)


# the learning rate's constructor takes a step, too
@pytest.mark.parametrize(("owner", "call"), [(Adam, 4), (CosineAnnealingLR, 5)])
def test_an_interrupted_tuning_ends_with_the_same_rows(
    evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, call: int
) -> None:
    """Ctrl-C within the fourth iteration, when only a part of the state is already that of its end."""
    whole: list[float] = []
    expected = tuned(evaluator, tmp_path / "whole", whole.append)
    parts: list[float] = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, owner, "step", call)
        tuned(evaluator, tmp_path / "parts", parts.append)
    assert all(p.requires_grad for p in evaluator.renderer.pipe.transformer.parameters())
    assert parts == whole[:3]
    resumed: list[float] = []
    rows = tuned(evaluator, tmp_path / "parts", resumed.append)
    assert resumed == whole
    assert torch.equal(rows.outputs, expected.outputs) and torch.equal(rows.inputs, expected.inputs)


def interrupt_after(patch: pytest.MonkeyPatch, owner: type, name: str, call: int) -> None:
    real, calls = getattr(owner, name), [0]

    def interrupting(*args: Any) -> Any:
        result = real(*args)
        calls[0] += 1
        if calls[0] == call:
            raise KeyboardInterrupt
        return result

    patch.setattr(owner, name, interrupting)


def test_an_unfinished_tuning_is_written_now_and_then(
    evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "EVERY", 4)
    written: list[int] = []
    tuned(evaluator, tmp_path / "unfinished", lambda _: written.append(len(list(tmp_path.iterdir()))))
    assert written == [0, 0, 0, 1, 1, 1]


def test_weights_that_follow_recorded_runs_come_closer_than_the_line_on_them(evaluator: Evaluator) -> None:
    grams = record_grams(evaluator.renderer, evaluator.requests, Stack())
    gram = grams["stack"].mean(0)
    start, follow = (
        starting_rows(MASK, 3, (LANES, CHANNELS), grams, ridge).outputs[0] for ridge in (None, 0.01)
    )
    assert torch.all(errors(gram, follow, MASK) <= errors(gram, start, MASK) + 1e-6)
    assert torch.allclose(follow.sum(1), start.sum(1), atol=1e-4)


def test_trainer_and_runtime_agree_where_halves_are_calls() -> None:
    pipe, mask = tiny_flux(), "CHFHCFHFFF"
    line_rows = starting_rows(mask, 3, (LANES, CHANNELS), {}, None, "later")
    rows = line_rows._replace(outputs=line_rows.outputs * 1.05, inputs=line_rows.inputs + 0.01)
    with torch.no_grad(), attached(pipe, Trainer(mask, rows)):
        trained = sample_flux(pipe, true_cfg_scale=2.0)
    with apply(pipe, rows.policy(mask, "t")) as session:
        served = sample_flux(pipe, true_cfg_scale=2.0)
    assert torch.allclose(torch.from_numpy(trained), torch.from_numpy(served), atol=1e-4)
    assert session.stats.nfc == computations(mask) and not session.stats.fallbacks
