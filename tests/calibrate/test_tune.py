"""Closed-loop fitting: the trained rows and the runtime agree, and training lowers the error."""

import pytest
import torch
from tests.tiny import tiny_dit

from cachesmith.calibrate.channels import record_grams
from cachesmith.calibrate.evaluate import Evaluator
from cachesmith.calibrate.prompts import requests
from cachesmith.calibrate.record import watch
from cachesmith.calibrate.render import Renderer
from cachesmith.calibrate.solvers import errors
from cachesmith.calibrate.tune import Trainer, tune
from cachesmith.calibrate.weights import Rows, line, starting_rows
from cachesmith.policies import Stack

STEPS = 10
MASK = "CCFFCFFCFF"
LANES, CHANNELS = 1, 32


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    renderer = Renderer(tiny_dit(), STEPS, guidance_scale=1.5)
    return Evaluator(renderer, requests([{"class_labels": i} for i in range(4)], 4, 0))


def test_starting_rows_are_the_line(evaluator: Evaluator) -> None:
    straight = evaluator(line(MASK))
    fitted = evaluator(starting_rows(MASK, 3, (LANES, CHANNELS), {}, None).policy(MASK, "t"))
    assert torch.allclose(straight.pictures.images, fitted.pictures.images, atol=1e-5)
    assert fitted.nfc == MASK.count("C")


def test_trainer_and_runtime_give_the_same_pictures(evaluator: Evaluator) -> None:
    rows = starting_rows(MASK, 3, (LANES, CHANNELS), {}, None)
    generator = torch.Generator().manual_seed(0)
    used = rows.outputs != 0
    disturbed = Rows(
        rows.outputs + 0.05 * used * torch.randn(rows.outputs.shape, generator=generator),
        torch.cat(
            [
                0.01 * used * torch.randn(rows.outputs.shape, generator=generator),
                torch.full((LANES, STEPS, 1, CHANNELS), 0.01),
            ],
            2,
        ),
    )
    with torch.no_grad(), watch(evaluator.renderer.pipe, Stack(), Trainer(MASK, disturbed)):
        trained = evaluator.renderer(evaluator.requests).images
    served = evaluator(disturbed.policy(MASK, "t")).pictures.images
    assert torch.allclose(trained, served, atol=1e-5)


def test_tuning_lowers_the_closed_loop_error(evaluator: Evaluator) -> None:
    start = starting_rows(MASK, 3, (LANES, CHANNELS), {}, None)
    losses: list[float] = []
    batches = [(evaluator.requests, evaluator.reference.images)] * 6
    rows = tune(evaluator.renderer, batches, MASK, start, 0.01, losses.append)
    assert min(losses[1:]) < losses[0]
    assert not torch.equal(rows.outputs, start.outputs)
    assert all(p.requires_grad for p in evaluator.renderer.pipe.transformer.parameters())


def test_weights_that_follow_recorded_runs_come_closer_than_the_line_on_them(evaluator: Evaluator) -> None:
    grams = record_grams(evaluator.renderer, evaluator.requests, Stack())
    gram = grams["stack"].mean(0)
    start, follow = (
        starting_rows(MASK, 3, (LANES, CHANNELS), grams, ridge).outputs[0] for ridge in (None, 0.01)
    )
    assert torch.all(errors(gram, follow, MASK) <= errors(gram, start, MASK) + 1e-6)
    assert torch.allclose(follow.sum(1), start.sum(1), atol=1e-4)
