"""Closed-loop fitting: the trained rows and the runtime agree, and training lowers the error."""

import pytest
import torch
from tests.tiny import tiny_dit

from cachesmith.calibrate.candidates import fixed_profile
from cachesmith.calibrate.evaluate import Evaluator, as_policy
from cachesmith.calibrate.prompts import requests
from cachesmith.calibrate.record import watch
from cachesmith.calibrate.render import Renderer
from cachesmith.calibrate.tune import Rows, Trainer, starting_rows, tune
from cachesmith.policies import Fitted, Forecaster, Stack

STEPS = 10
MASK = "CCFFCFFCFF"
LANES, CHANNELS = 1, 32


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    renderer = Renderer(tiny_dit(), STEPS, guidance_scale=1.5)
    return Evaluator(renderer, requests([{"class_labels": i} for i in range(4)], 4, 0))


def fitted_policy(rows: Rows) -> object:
    forecaster = Forecaster(rows=Fitted(weights="t/weights", input_weights="t/input_weights", ids="t/ids"))
    return as_policy(fixed_profile(MASK, forecaster), rows.arrays("t"))


def test_starting_rows_are_the_line(evaluator: Evaluator) -> None:
    line = evaluator(as_policy(fixed_profile(MASK)))
    fitted = evaluator(fitted_policy(starting_rows(MASK, 3, LANES, CHANNELS)))  # type: ignore[arg-type]
    assert torch.allclose(line.pictures.images, fitted.pictures.images, atol=1e-5)
    assert fitted.nfc == MASK.count("C")


def test_trainer_and_runtime_give_the_same_pictures(evaluator: Evaluator) -> None:
    rows = starting_rows(MASK, 3, LANES, CHANNELS)
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
    served = evaluator(fitted_policy(disturbed)).pictures.images  # type: ignore[arg-type]
    assert torch.allclose(trained, served, atol=1e-5)


def test_tuning_lowers_the_closed_loop_error(evaluator: Evaluator) -> None:
    start = starting_rows(MASK, 3, LANES, CHANNELS)
    losses: list[float] = []
    batches = [(evaluator.requests, evaluator.reference.images)] * 6
    rows = tune(evaluator.renderer, batches, MASK, start, 0.01, losses.append)
    assert min(losses[1:]) < losses[0]
    assert not torch.equal(rows.outputs, start.outputs)
    assert all(p.requires_grad for p in evaluator.renderer.pipe.transformer.parameters())
