"""An adapter that a user wrote with a mistake is refused in words, before a picture is made with it."""

from dataclasses import replace
from typing import Any

import pytest
from tests.tiny import policy, sample_dit, tiny_dit

from cachesmith.policies import Modules, PolicyError
from cachesmith.runtime import apply, register
from cachesmith.runtime.models import adapters
from cachesmith.runtime.models.adapter import Adapter, BlockList, ModuleSpan

STREAMS = ("hidden_states",)
BLOCKS = BlockList("transformer_blocks", STREAMS)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(adapters, "_REGISTERED", {})
    return tiny_dit()


def refuse(pipe: Any, adapter: Adapter, units: Any = None, *, match: str) -> None:
    register(type(pipe.transformer), adapter)
    with pytest.raises(PolicyError, match=match), apply(pipe, policy(units)):
        sample_dit(pipe)


def attention(path: str) -> Adapter:
    return Adapter((replace(BLOCKS, modules=(ModuleSpan("attn", path, path),)),))


def test_what_fits_is_taken(pipe: Any) -> None:
    register(type(pipe.transformer), attention("attn1"))
    with apply(pipe, policy(Modules())) as session:
        sample_dit(pipe)
    assert not session.stats.fallbacks and session.stats.forecast


def test_mistakes_are_told(pipe: Any) -> None:
    refuse(pipe, Adapter((BlockList("blocks", STREAMS),)), match="it has no blocks; .*register")
    refuse(pipe, Adapter((BLOCKS,), live=("x",)), match=r"streams hidden_states is among the `live` ones x;")
    refuse(pipe, Adapter((BLOCKS,), timestep="t"), match="it takes no argument t;")
    refuse(pipe, attention("attention"), match=r"transformer_blocks\.0 has no attention;")
    refuse(pipe, attention("attention"), Modules(), match=r"transformer_blocks\.0 has no attention;")


def test_a_wrong_number_of_streams_is_told_by_the_first_call(pipe: Any) -> None:
    two = BlockList("transformer_blocks", ("hidden_states", "encoder_hidden_states"))
    refuse(
        pipe, Adapter((two,)), match=r"stack returns 1 tensors where the adapter names 2 streams \(hidden_"
    )
