"""A call's arguments are found by name whoever wrapped the module's forward, and however often."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cachesmith.runtime.hooks.arguments import mapper, namer, reader, writer
from cachesmith.runtime.hooks.patch import Layer

X, TEXT, TEMB = (torch.full((1,), float(i)) for i in range(3))
NAMES = ("hidden_states", "encoder_hidden_states")
CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((X, TEXT, TEMB), {}),
    ((X, TEXT), {"temb": TEMB}),
    ((X,), {"encoder_hidden_states": TEXT, "temb": TEMB}),
    ((), {"hidden_states": X, "encoder_hidden_states": TEXT, "temb": TEMB}),
]
Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]


class Block(nn.Module):
    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor) -> Tensor:
        return hidden_states + encoder_hidden_states + temb


def anything(plain: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, plain=plain, **kwargs: plain(*args, **kwargs)


def the_first_by_name(plain: Callable[..., Any]) -> Callable[..., Any]:
    return lambda hidden_states, *args, **kwargs: plain(hidden_states, *args, **kwargs)


def all_but_the_first_by_keyword(plain: Callable[..., Any]) -> Callable[..., Any]:
    return lambda hidden_states, **kwargs: plain(hidden_states, **kwargs)


def all_by_name(plain: Callable[..., Any]) -> Callable[..., Any]:
    return lambda hidden_states, encoder_hidden_states, temb: plain(
        hidden_states, encoder_hidden_states, temb
    )


@pytest.mark.parametrize("layered", [False, True])
@pytest.mark.parametrize(
    "wrapper", [None, anything, the_first_by_name, all_but_the_first_by_keyword, all_by_name]
)
def test_arguments_of_a_wrapped_block(wrapper: Wrapper | None, layered: bool) -> None:
    block: Any = Block()
    if wrapper is not None:
        block.forward = wrapper(block.forward)
    if layered:
        Layer(block, "forward", lambda original: original)
    for args, kwargs in CALLS:
        assert reader(block, NAMES)(args, kwargs) == (X, TEXT)
        assert namer(block, NAMES)(args, kwargs) == {**dict(zip(NAMES, (X, TEXT), strict=True)), "temb": TEMB}
        placed, named = writer(block, NAMES)(args, kwargs, (TEMB, X))
        assert Block()(*placed, **named) == TEMB + X + TEMB
        placed, named = mapper(block)(args, kwargs, lambda name, value: value + 10 * (name == "temb"))
        assert Block()(*placed, **named) == X + TEXT + TEMB + 10


def test_every_argument_of_a_block_that_takes_anything_is_changed() -> None:
    class Anything(nn.Module):
        def forward(self, hidden_states: Tensor, *rest: Tensor) -> Tensor:
            return hidden_states + sum(rest)

    placed, _ = mapper(Anything())((X, TEXT, TEMB, TEMB), {}, lambda _, value: value + 1)
    assert placed == (X + 1, TEXT + 1, TEMB + 1, TEMB + 1)
