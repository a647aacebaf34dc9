"""Where the device's memory runs out, samples are called half as many at a time, and the result is the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.calibrate.closed_loop.world import Flux, dit, shards

from cachesmith.calibrate.closed_loop.fit import SegmentFitter
from cachesmith.calibrate.closed_loop.lanes import Schedule
from cachesmith.calibrate.closed_loop.polish import Polisher
from cachesmith.calibrate.fleet.groups import request_groups
from cachesmith.calibrate.references import reference
from cachesmith.policies import CachesmithError
from cachesmith.sampling.out_of_memory import in_memory
from cachesmith.sampling.requests import requests

MASK = Schedule("CFFFFCFFFF")


class Some(list[int]):
    def parts(self, size: int) -> "list[Some]":
        return [Some(self[i : i + size]) for i in range(0, len(self), size)]


def test_what_does_not_fit_is_halved_with_all_after_it() -> None:
    tried: list[list[int]] = []

    def work(some: Some) -> int:
        tried.append([*some])
        if len(some) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return sum(some)

    called, results = in_memory([Some([1, 2, 3, 4]), Some([5, 6, 7])], work)
    assert called == [[1, 2], [3, 4], [5, 6], [7]] and results == [3, 7, 11, 7]
    assert tried[0] == [1, 2, 3, 4] and [5, 6, 7] not in tried


def test_one_sample_that_does_not_fit_is_told() -> None:
    def work(_: Some) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    with pytest.raises(
        CachesmithError, match=r"one sample alone .*CUDA out of memory.*--gradient-checkpointing"
    ):
        in_memory([Some([1, 2])], work)


@contextmanager
def short_of_memory(transformer: Any, rows: int) -> Iterator[None]:
    """Calls of more than so many rows do not fit."""

    def check(_: Any, args: Any, kwargs: Any) -> None:
        if len(kwargs.get("hidden_states", *args[:1])) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = transformer.transformer_blocks[0].register_forward_pre_hook(check, with_kwargs=True)
    yield
    handle.remove()


@pytest.mark.parametrize(("make", "rows"), [(dit, 4), (lambda: Flux(2.0), 2)])
def test_a_fit_and_its_gradients_go_on_with_smaller_batches(make: Any, rows: int) -> None:
    found = []
    for short in (False, True):
        renderer = make()
        samples = shards(renderer, 1, 4)
        with short_of_memory(renderer.pipe.transformer, rows if short else 100):
            fit = SegmentFitter(samples, MASK, (32,), ridges=(1e-2,), turns=1)()
            found.append((fit, Polisher(samples, fit, size=4)(2)))
    (whole, polished), (halved, again) = found
    torch.testing.assert_close(whole.samples, halved.samples, rtol=1e-3, atol=1e-2)
    for step in whole.rows:
        torch.testing.assert_close(whole.rows[step], halved.rows[step], rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(polished[step], again[step], rtol=1e-2, atol=1e-3)


def test_references_go_on_with_smaller_batches(tmp_path: Any) -> None:
    renderer = dit()
    (group,) = request_groups(requests([{"class_labels": 1}], 3, 0), 4)
    whole, _ = reference(renderer, group, tmp_path / "whole")
    with short_of_memory(renderer.pipe.transformer, 4):
        halved, sampled = reference(renderer, group, tmp_path / "halved")
    assert sampled == 3 and len(list((tmp_path / "halved").iterdir())) == 3
    torch.testing.assert_close(whole.path, halved.path, rtol=1e-4, atol=1e-4)
