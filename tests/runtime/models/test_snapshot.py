"""Entering a policy again: what is remembered of a network, and that every change of it is noticed."""

import gc
import warnings
import weakref
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from tests.runtime.operations import NoWaiting
from tests.tiny import Pipeline, policy, sample_flux
from torch import Tensor, nn

from cachesmith.policies import Policy
from cachesmith.runtime import apply
from cachesmith.runtime.models import weights
from cachesmith.runtime.models.fingerprint import facts, model_key
from cachesmith.runtime.models.snapshot import Network, look, slots


def linear(model: nn.Module) -> nn.Linear:
    found = model.get_submodule("transformer_blocks.0.attn.to_q")
    assert isinstance(found, nn.Linear)
    return found


class Wrapped(nn.Module):
    """A layer in a LoRA's."""

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer


def replace_module(model: nn.Module) -> None:
    model.get_submodule("transformer_blocks.0.attn").to_q = nn.Linear(32, 32)


def wrap_module(model: nn.Module) -> None:
    model.get_submodule("transformer_blocks.0.attn").to_q = Wrapped(linear(model))


def add_module(model: nn.Module) -> None:
    linear(model).extra = nn.Identity()


def rename_module(model: nn.Module) -> None:
    parent = model.get_submodule("transformer_blocks.0.attn")
    children = {("renamed" if n == "to_q" else n): child for n, child in parent._modules.items()}
    parent._modules.clear()
    parent._modules.update(children)


def remove_parameter(model: nn.Module) -> None:
    linear(model).register_parameter("bias", None)


def replace_parameter(model: nn.Module) -> None:
    linear(model).weight = nn.Parameter(linear(model).weight.detach().clone())


def replace_bare_module(model: nn.Module) -> None:
    """One without parameters."""
    (name, _), *_ = (item for item in model.named_modules() if isinstance(item[1], nn.LayerNorm))
    holder, _, key = name.rpartition(".")
    setattr(model.get_submodule(holder), key, deepcopy(model.get_submodule(name)))


def replace_parameter_in_place(model: nn.Module) -> None:
    """Another one on the same memory."""
    linear(model).weight = nn.Parameter(linear(model).weight.detach())


def cast(model: nn.Module) -> None:
    model.to(torch.bfloat16)


def assign_data(model: nn.Module) -> None:
    linear(model).weight.data = linear(model).weight.data * 2


def view_data(model: nn.Module) -> None:
    linear(model).weight.data = linear(model).weight.data.view(torch.float16)


@torch.no_grad()
def write(model: nn.Module) -> None:
    linear(model).weight.mul_(2)


@torch.inference_mode()
def write_in_inference_mode(model: nn.Module) -> None:
    linear(model).weight.mul_(2)


def load_state(model: nn.Module) -> None:
    linear(model).load_state_dict({n: v + 1 for n, v in linear(model).state_dict().items()})


CHANGES: list[Callable[[nn.Module], None]] = [
    replace_module,
    wrap_module,
    add_module,
    rename_module,
    remove_parameter,
    replace_bare_module,
    replace_parameter,
    replace_parameter_in_place,
    cast,
    assign_data,
    view_data,
    write,
    write_in_inference_mode,
    load_state,
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(flux: Pipeline, change: Callable[[nn.Module], None]) -> None:
    before = look(flux.transformer)
    assert look(flux.transformer).snapshot is before.snapshot
    change(flux.transformer)
    after = look(flux.transformer)
    assert after.snapshot is not before.snapshot
    assert look(flux.transformer).snapshot is after.snapshot


def test_memory_that_is_given_out_again(flux: Pipeline) -> None:
    """A B A: allocators like to give back an address that was just freed."""
    weight = linear(flux.transformer).weight
    addresses, snapshots = [weight.data_ptr()], [look(flux.transformer).snapshot]
    for _ in range(8):
        for _ in range(2):
            weight.data = weight.data * 2
        addresses.append(weight.data_ptr())
        snapshots.append(look(flux.transformer).snapshot)
    assert all(a is not b for a, b in pairwise(snapshots))


def test_nothing_is_kept_alive(flux: Pipeline) -> None:
    model = flux.transformer
    look(model)
    slots(model, [*model.transformer_blocks])
    layer = linear(model)
    held = [weakref.ref(each) for each in (layer, layer.weight, layer.weight.untyped_storage())]
    del layer
    replace_module(model)
    gc.collect()
    assert [each() for each in held] == [None] * 3


def in_inference_mode(model: nn.Module) -> None:
    """Parameters made there have no version."""
    with torch.inference_mode():
        linear(model).weight = nn.Parameter(torch.zeros(32, 32))


def of_another_class(model: nn.Module) -> None:
    """As quantised ones are."""
    linear(model).weight = nn.Parameter(torch.zeros(32, 32).as_subclass(Quantised), requires_grad=False)


class Quantised(Tensor):
    """May change inside."""


@pytest.mark.parametrize("change", [in_inference_mode, of_another_class])
def test_where_a_change_could_not_be_told_an_entry_remembers_nothing(
    flux: Pipeline, change: Callable[[nn.Module], None]
) -> None:
    change(flux.transformer)
    reads: list[int] = []
    first, second = (look(flux.transformer) for _ in range(2))
    last = look(flux.transformer, second.snapshot)  # from one run to the next in a session
    for network in (first, second, last):
        network.recall("reads", lambda: reads.append(1))
    assert first.snapshot is not second.snapshot is last.snapshot and reads == [1, 1]
    linear(flux.transformer).weight = nn.Parameter(torch.zeros(32, 32))
    assert look(flux.transformer, last.snapshot).snapshot is not last.snapshot


def test_modules_that_contain_themselves() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.again = model
    network = look(model)
    assert network.modules == [*model.modules()] and look(model).snapshot is network.snapshot


def test_modules_in_two_places() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Identity(), nn.Identity())
    model[2] = model[0]
    before = look(model)
    assert look(model).snapshot is before.snapshot and len(before.parameters) == 2
    model[2] = nn.Linear(2, 2)
    assert look(model).snapshot is not before.snapshot


def test_processors_are_asked_every_time(flux: Pipeline) -> None:
    """Not by `set_attention_backend`, which is for the whole process."""
    processor = flux.transformer.transformer_blocks[0].attn.processor
    for backend in ("one", "another"):
        processor._attention_backend = backend
        assert facts(look(flux.transformer))["attention"] == backend


def test_layerwise_casting_is_seen(flux: Pipeline) -> None:
    """The same dtype for storage: nothing but hooks tells of it."""
    assert facts(look(flux.transformer))["dtype"] == "float32"
    flux.transformer.enable_layerwise_casting(storage_dtype=torch.float32, compute_dtype=torch.bfloat16)
    assert facts(look(flux.transformer))["dtype"] == "bfloat16"


def test_places_follow_what_moved(flux: Pipeline) -> None:
    model, layer = flux.transformer, linear(flux.transformer)
    look(model)
    assert slots(model, [layer]) == [(model.transformer_blocks[0].attn, "to_q")]
    wrap_module(model)
    assert slots(model, [layer]) == [(model.transformer_blocks[0].attn.to_q, "base_layer")]


def unreadable(_: Tensor) -> Tensor:
    raise AssertionError("a parameter's values were read")


def enter(pipe: Pipeline, chosen: Policy) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with apply(pipe, chosen):
            pass


def unseen(model: nn.Module) -> None:
    """As where a LoRA is fused."""
    linear(model).weight.data += 0.1 * torch.randn(32, 32)


def unseen_in_some_rows(model: nn.Module) -> None:
    """As into the keys of a layer that makes queries, keys and values."""
    linear(model).weight.data[12:24] += 0.1


def transposed(model: nn.Module) -> None:
    linear(model).weight.data = linear(model).weight.data.t()


@pytest.mark.parametrize("change", [write, unseen, unseen_in_some_rows, transposed])
def test_weights_are_read_again_only_after_a_change(
    flux: Pipeline, monkeypatch: pytest.MonkeyPatch, change: Callable[[nn.Module], None]
) -> None:
    chosen = policy(model=model_key(flux.transformer))
    enter(flux, chosen)
    monkeypatch.setattr(weights, "picked", unreadable)
    enter(flux, chosen)
    with apply(flux, chosen):
        for _ in range(2):
            sample_flux(flux)
    change(flux.transformer)
    with pytest.raises(AssertionError, match="values were read"):
        enter(flux, chosen)


def test_a_change_and_back(flux: Pipeline) -> None:
    """As a LoRA that is fused and unfused."""
    chosen = policy(model=model_key(flux.transformer))
    enter(flux, chosen)
    weight, delta = linear(flux.transformer).weight, 0.1 * torch.randn(32, 32)
    weight.data += delta
    with pytest.warns(RuntimeWarning, match="a model with others"), apply(flux, chosen):
        pass
    weight.data -= delta
    enter(flux, chosen)


def test_device_reads_of_an_entry(flux: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """One copy to the host for each dtype on a device, however many parameters; no value is waited for by itself."""
    linear(flux.transformer).to(torch.bfloat16)
    chosen = policy(model=model_key(flux.transformer))
    enter(flux, chosen)
    copies: list[int] = []
    copy = Tensor.cpu

    def counted(value: Tensor) -> Tensor:
        copies.append(value.numel())
        return copy(value)

    monkeypatch.setattr(Tensor, "cpu", counted)
    with NoWaiting():  # type: ignore[no-untyped-call]
        enter(flux, chosen)
    parameters = [*flux.transformer.parameters()]
    assert len(copies) == 2 and sum(copies) == sum(min(8, p.numel()) for p in parameters)


def test_another_policy_is_compared_by_itself(flux: Pipeline) -> None:
    right = policy(model=model_key(flux.transformer))
    key = model_key(flux.transformer)
    assert key.weights_sketch is not None
    wrong = policy(model=key.model_copy(update={"weights_sketch": ((9.0, 9.0), *key.weights_sketch[1:])}))
    for _ in range(2):
        enter(flux, right)
        with pytest.warns(RuntimeWarning, match="a model with others"), apply(flux, wrong):
            pass


def test_a_network_is_what_it_was(flux: Pipeline) -> None:
    network: Network = look(flux.transformer)
    assert {*network.modules} == {*flux.transformer.modules()}
