"""A calibration chooses by its plan of memory, and finds the same policy."""

import weakref
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.calibrate.small import pipeline, run, settings

from cachesmith.calibrate.closed_loop.gradient_checkpointing import recomputed
from cachesmith.calibrate.config import CalibrationConfig
from cachesmith.calibrate.fleet.shard import Shard
from cachesmith.calibrate.memory import choice
from cachesmith.calibrate.memory.choice import free_memory
from cachesmith.calibrate.memory.placement import Placement
from cachesmith.calibrate.memory.plan import placement_of, planned_phases
from cachesmith.calibrate.memory.sizes import sizes_of
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import requests

ASKED: dict[str, Any] = {"steps": 8, "budget": 13.0, "batch": None}
"""One gradient, whether blocks are computed again for it or not."""


def test_what_is_chosen_is_kept_in_the_work_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, some = pipeline(), requests([{"class_labels": 1}], 2, 0)

    def chosen(free: int | None, key: str = "key", **given: Any) -> Placement:
        monkeypatch.setattr(choice, "free_memory", lambda _: free)
        return choice.choose(pipe, some, settings(tmp_path, **ASKED | given), key)

    assert chosen(None) == Placement(8, 4) and "memory:" not in capsys.readouterr().err
    least = Placement(1, 1, history=False, recomputed=True, graph_on_host=True)
    assert chosen(1) == least
    said = capsys.readouterr().err
    assert "memory: --batch 1 --gradient-checkpointing; 1 at once for gradients; on the host:" in said
    assert chosen(10**12) == least and "memory:" not in capsys.readouterr().err
    assert chosen(10**12, "another") == Placement(8, 4) and chosen(10**12, workers=2) == Placement(8, 2)


@pytest.mark.slow
def test_little_memory_is_kept_to_and_leaves_the_policy_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Any] = []
    plain = Shard.__init__

    def init(self: Shard, renderer: Any, groups: Any, folder: Path, where: Placement) -> None:
        made.append(where)
        plain(self, renderer, groups, folder, where)

    monkeypatch.setattr(Shard, "__init__", init)
    whole = run(tmp_path / "whole", **ASKED)
    assert "memory:" not in capsys.readouterr().err
    monkeypatch.setattr(choice, "free_memory", lambda _: 1)
    least = run(tmp_path / "least", **ASKED)
    said = capsys.readouterr().err
    assert "memory: --batch 1" in said and "what is remembered of samples" in said
    assert made == [Placement(8, 4), Placement(1, 1, history=False, recomputed=True, graph_on_host=True)]
    assert least.document.profiles["4x"].gate == whole.document.profiles["4x"].gate
    for name, array in whole.arrays.items():
        torch.testing.assert_close(
            torch.tensor(least.arrays[name]), torch.tensor(array), rtol=1e-2, atol=1e-3
        )


def test_what_the_user_asks_for_stays() -> None:
    sizes = sizes_of(Renderer(pipeline(), 2, 1, guidance_scale=1.5), requests([{"class_labels": 1}], 1, 0)[0])

    def chosen(free: int, **given: Any) -> Placement:
        return placement_of(CalibrationConfig(budget=400, **given), sizes, free)

    assert chosen(10**12) == Placement()
    least = chosen(1)
    assert (least.batch, least.gradient_batch, least.recomputed, least.history) == (1, 1, True, False)
    asked = chosen(1, batch=4, gradient_checkpointing=False)
    assert (asked.batch, asked.gradient_batch, asked.recomputed) == (4, 1, False)
    assert chosen(10**12, gradient_checkpointing=True).recomputed
    config = CalibrationConfig(budget=400)

    def most(where: Placement) -> int:
        return max(phase.device for phase in planned_phases(config, sizes, where))

    found = chosen(most(Placement()) - 1)
    assert found != Placement() and most(found) < most(Placement())


def test_a_cpu_has_no_limit() -> None:
    assert free_memory(torch.device("cpu")) is None
    assert settings(Path()).batch == 4 and CalibrationConfig().batch is None


def test_inputs_on_the_host_leave_gradients_as_they_are() -> None:
    transformer = pipeline().transformer
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    given = {"timestep": torch.tensor([500, 500]), "class_labels": torch.tensor([1, 2])}
    seen: list[Any] = []
    for block in transformer.transformer_blocks[1:]:
        block.register_forward_pre_hook(lambda _, args: seen.append(weakref.ref(args[0])))

    def gradient(around: AbstractContextManager[None]) -> tuple[torch.Tensor, int]:
        seen.clear()
        latents = start.clone().requires_grad_()
        with around:
            output = transformer(latents, **given).sample
        alive = sum(each() is not None for each in seen)
        output.square().sum().backward()
        assert latents.grad is not None
        return latents.grad, alive

    plain, _ = gradient(nullcontext())
    again, kept = gradient(recomputed(transformer))
    moved, left = gradient(recomputed(transformer, on_host=True))
    assert torch.equal(plain, again) and torch.equal(plain, moved)
    assert kept == len(transformer.transformer_blocks) - 1 and left == 0
