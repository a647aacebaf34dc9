"""Layers come off wherever they are by then, in any order; copies of what has some are without."""

import copy
import inspect
import pickle
from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest
import torch
from torch import nn

from cachesmith.runtime.hooks.patch import Layer, heard, patched, strip


class Doubler:
    def __init__(self) -> None:
        self.gain = 2

    def call(self, x: int) -> int:
        return self.gain * x


def plus(amount: int) -> Callable[[Callable[..., int]], Callable[..., int]]:
    return lambda original: lambda x: original(x) + amount


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("second", [0, 1])
def test_layers_come_off_in_any_order(first: int, second: int) -> None:
    owner = Doubler()
    layers = [Layer(owner, "call", plus(amount)) for amount in (1, 10, 100)]
    amounts = [1, 10, 100]
    assert owner.call(5) == 121
    for index in (first, second, 0):
        layers.pop(index).remove()
        amounts.pop(index)
        assert owner.call(5) == 10 + sum(amounts)
    assert vars(owner) == {"gain": 2}


def test_a_layer_under_somebody_elses_wrapper_lets_calls_through() -> None:
    owner: Any = Doubler()
    layer = Layer(owner, "call", plus(1))
    below = owner.call
    owner.call = lambda x: below(x) * 1000
    layer.remove()
    assert owner.call(5) == 10_000


def test_a_layer_over_somebody_elses_function_keeps_its_signature() -> None:
    """Pipelines and we ourselves ask for it; the function takes no `self` that would have to be left out."""
    owner: Any = Doubler()
    owner.call = lambda x, y=0: x + y
    layer = Layer(owner, "call", plus(1))
    assert [*inspect.signature(owner.call).parameters] == ["x", "y"] and owner.call(5) == 6
    layer.remove()


def test_signatures_stay_where_layers_and_wrappers_alternate() -> None:
    owner: Any = Doubler()
    owner.call = lambda x, y=0: x + y
    for _ in range(3):
        Layer(owner, "call", plus(1))
        below = owner.call
        owner.call = wraps(below)(lambda *args, below=below, **kwargs: below(*args, **kwargs))
        assert [*inspect.signature(owner.call).parameters] == ["x", "y"]
    assert owner.call(5) == 8


def test_a_layer_that_somebody_took_off_stays_off() -> None:
    owner = Doubler()
    layer = Layer(owner, "call", plus(1))
    del vars(owner)["call"]
    layer.remove()
    assert owner.call(5) == 10 and vars(owner) == {"gain": 2}


def test_copies_call_their_own() -> None:
    owner = Doubler()
    layer = Layer(owner, "call", plus(1))
    for copied in (copy.deepcopy(owner), pickle.loads(pickle.dumps(owner))):
        copied.gain = 7
        assert copied.call(5) == 35 and owner.call(5) == 11
        strip(copied)
        assert "call" not in vars(copied)
    layer.remove()
    assert owner.call(5) == 10


def test_hooks_of_others_forget_a_layer() -> None:
    """As accelerate keeps a module's own forward."""
    linear: Any = nn.Linear(2, 2)
    layer = Layer(linear, "forward", lambda original: lambda x: original(x) + 1)
    linear._old_forward = linear.forward
    linear.forward = lambda x: linear._old_forward(x) * 2
    x = torch.ones(1, 2)
    assert torch.equal(linear(x), (nn.Linear.forward(linear, x) + 1) * 2)
    layer.remove()
    linear.forward = linear._old_forward
    assert torch.equal(linear(x), nn.Linear.forward(linear, x))
    assert linear.forward == nn.Linear.forward.__get__(linear)


def test_two_listeners_left_in_the_order_they_came() -> None:
    owner, calls = Doubler(), list[str]()
    first = heard(owner, "call", lambda *_: calls.append("first"))
    second = heard(owner, "call", lambda *_: calls.append("second"))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert owner.call(1) == 2 and calls == ["second"]
    second.__exit__(None, None, None)
    assert vars(owner) == {"gain": 2}


def test_two_patches_left_in_the_order_they_came() -> None:
    owner = Doubler()
    first, second = patched(owner, "gain", 3), patched(owner, "gain", 4)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert owner.gain == 4
    second.__exit__(None, None, None)
    assert owner.gain == 2
