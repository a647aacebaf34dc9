"""Gradient checkpointing: the same weights, with less held."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_dit, tiny_flux
from torch import Tensor

from cachesmith.calibrate.config import CalibrationConfig
from cachesmith.calibrate.tune.improve import tuned
from cachesmith.calibrate.tune.rows import Rows, starting_rows
from cachesmith.policies import Follower
from cachesmith.runtime.models.units import block_lists
from cachesmith.sampling.evaluate import Evaluator
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import requests

STEPS = 10


def dit() -> Evaluator:
    return Evaluator(Renderer(tiny_dit(), STEPS, guidance_scale=1.5), requests([{"class_labels": 1}], 2, 0))


def compiled() -> Evaluator:
    evaluator = dit()
    for _, block in block_lists(evaluator.renderer.pipe.transformer):
        block.compile(backend="eager")
    return evaluator


def flux() -> Evaluator:
    text = {"prompt_embeds": torch.ones(1, 3, 32), "pooled_prompt_embeds": torch.ones(1, 32)}
    return Evaluator(Renderer(tiny_flux(), STEPS, 1, height=16, width=16, **text), requests([{}], 1, 0))


@contextmanager
def held(evaluator: Evaluator) -> Iterator[dict[int, int]]:
    """Bytes of every storage that is kept for a backward pass, but for the model's own."""
    transformer = evaluator.renderer.pipe.transformer
    own = {parameter.data_ptr() for parameter in transformer.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def entered(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """What is checkpointed holds its arguments, of which torch tells the unnamed ones alone."""
        for value in kwargs.values() if torch.is_grad_enabled() else ():
            if isinstance(value, Tensor):
                keep(value)

    with ExitStack() as stack:
        for _, block in block_lists(transformer):
            stack.callback(block.register_forward_pre_hook(entered, with_kwargs=True).remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
        yield kept


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile looks at it
@pytest.mark.parametrize(
    ("make", "mask", "lanes", "follower"),
    [
        (dit, "CHFFCFHFCF", 2, "second"),
        (compiled, "CFFFCFFFCF", 1, None),
        (flux, "CFFFCFFFCF", 1, None),
    ],
)
def test_the_same_weights_with_less_held(
    make: Callable[[], Evaluator], mask: str, lanes: int, follower: Follower | None, tmp_path: Path
) -> None:
    evaluator = make()
    start = starting_rows(mask, 3, (1, 32), {}, None, follower)
    assert len(start.outputs) == lanes
    found: list[Rows] = []
    sizes: list[int] = []
    for checkpointing in (False, True):
        config = CalibrationConfig(
            steps=STEPS, iterations=2, tune_batch=2, gradient_checkpointing=checkpointing
        )
        with held(evaluator) as kept:
            saved = tmp_path / f"{checkpointing}.pt"
            found.append(tuned(evaluator, mask, start, saved, config, lambda *_, **__: None))
        sizes.append(sum(kept.values()))
    assert torch.equal(found[0].outputs, found[1].outputs) and torch.equal(found[0].inputs, found[1].inputs)
    assert not torch.equal(found[0].outputs, start.outputs)
    assert sizes[1] < 0.6 * sizes[0]
    assert all("forward" not in vars(module) for module in evaluator.renderer.pipe.transformer.modules())
