"""Whatever happens to the pipeline inside a context: right, told or refused there, and undone after it."""

import copy
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tests.tiny import Pipeline, policy, sample_dit, sample_flux, tiny_dit, tiny_flux
from torch import nn

from cachesmith.policies import Interval, Modules, PolicyError, Stack
from cachesmith.runtime import apply

UNITS = [Stack(), Modules()]


def state(pipe: Pipeline) -> list[Any]:
    """What stands on the instances beside what their classes give them."""
    owners = [*pipe.transformer.modules(), pipe.scheduler]
    named = [
        sorted(set(vars(o)) & {"forward", "step", "set_timesteps", "cache_context", "_old_forward"})
        for o in owners
    ]
    return [*named, *(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.transformer.modules())]


def offload(pipe: Pipeline) -> None:
    cpu = torch.device("cpu")
    pipe.transformer.enable_group_offload(cpu, cpu, offload_type="block_level", num_blocks_per_group=1)


def offload_leaves(pipe: Pipeline) -> None:
    cpu = torch.device("cpu")
    pipe.transformer.enable_group_offload(cpu, cpu, offload_type="leaf_level")


def cast(pipe: Pipeline) -> None:
    pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)


def accelerate_hooks(pipe: Pipeline) -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module  # type: ignore[import-untyped]

    for module in pipe.transformer.modules():
        if not list(module.children()):
            add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))


def wrappers(pipe: Pipeline) -> None:
    """As another tool's profiler."""
    for block in [*pipe.transformer.transformer_blocks, pipe.transformer.transformer_blocks[0].attn]:
        plain = block.forward
        block.forward = lambda *args, plain=plain, **kwargs: plain(*args, **kwargs)


def halve(pipe: Pipeline) -> None:
    pipe.to(torch.bfloat16)


def compiled(pipe: Pipeline) -> None:
    for block in pipe.transformer.transformer_blocks:
        block.compile(backend="eager")


CHANGES: list[Callable[[Pipeline], None]] = [offload, offload_leaves, cast, accelerate_hooks, wrappers, halve]


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_inside_a_context(change: Callable[[Pipeline], None], units: Any) -> None:
    chosen = policy(units, Interval(interval=4))
    before = tiny_flux()
    change(before)
    plain, changed = sample_flux(before), state(before)
    with apply(before, chosen):
        expected = sample_flux(before)
    pipe = tiny_flux()
    with apply(pipe, chosen) as session:
        sample_flux(pipe, 7)
        change(pipe)
        counted = sum(session.stats.forecast.values())
        assert np.array_equal(sample_flux(pipe), expected)
        assert sum(session.stats.forecast.values()) > counted and not session.stats.fallbacks
    assert np.array_equal(sample_flux(pipe), plain) and state(pipe) == changed


@pytest.mark.parametrize("units", UNITS)
def test_hooks_that_are_taken_off_inside_a_context(units: Any) -> None:
    from diffusers.hooks import HookRegistry, ModelHook

    class Doubled(ModelHook):  # type: ignore[misc]
        def post_forward(self, module: nn.Module, output: Any) -> Any:
            return output * 2

    pipe, chosen = tiny_dit(), policy(units, Interval(interval=4))
    plain, clean = sample_dit(pipe), state(pipe)
    with apply(pipe, chosen):
        expected = sample_dit(pipe)
    member = (
        pipe.transformer.transformer_blocks[1]
        if units == Stack()
        else pipe.transformer.transformer_blocks[1].attn1
    )
    registry = HookRegistry.check_if_exists_or_initialize(member)
    registry.register_hook(Doubled(), "doubled")
    with apply(pipe, chosen) as session:
        assert not np.array_equal(sample_dit(pipe), expected)
        registry.remove_hook("doubled", recurse=False)
        assert np.array_equal(sample_dit(pipe), expected) and session.stats.forecast
    assert np.array_equal(sample_dit(pipe), plain)
    del vars(member)["forward"], vars(member)["_diffusers_hook"]  # what diffusers leaves behind without us
    assert state(pipe) == clean


def test_blocks_that_are_compiled_inside_a_context(dit: Pipeline) -> None:
    chosen, plain = policy(), sample_dit(dit)
    with apply(dit, chosen):
        expected = sample_dit(dit)
    with apply(dit, chosen) as session:
        compiled(dit)
        assert np.array_equal(sample_dit(dit), expected)
    assert session.stats.nfc == 5 and np.array_equal(sample_dit(dit), plain)


class LowRank(nn.Module):
    """What peft puts in a linear layer's place."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base_layer: Any = base
        self.down = nn.Linear(base.in_features, 4, bias=False)  # type: ignore[arg-type]
        self.up = nn.Linear(4, base.out_features, bias=False)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.up(self.down(x))  # type: ignore[no-any-return]


def load_lora(pipe: Pipeline) -> None:
    torch.manual_seed(3)
    for block in pipe.transformer.single_transformer_blocks:
        block.proj_mlp, block.proj_out = LowRank(block.proj_mlp), LowRank(block.proj_out)
    pipe.transformer.requires_grad_(False)


def unload_lora(pipe: Pipeline) -> None:
    for block in pipe.transformer.single_transformer_blocks:
        block.proj_mlp, block.proj_out = block.proj_mlp.base_layer, block.proj_out.base_layer


@pytest.mark.parametrize("units", UNITS)
def test_a_lora_loaded_and_unloaded_inside_a_context(units: Any) -> None:
    chosen = policy(units, Interval(interval=4))
    pipe = tiny_flux()
    with apply(pipe, chosen):
        without = sample_flux(pipe)
    load_lora(pipe)
    with apply(pipe, chosen):
        loaded = sample_flux(pipe)
    pipe = tiny_flux()
    plain = sample_flux(pipe)
    with apply(pipe, chosen) as session:
        for change, expected in ((load_lora, loaded), (unload_lora, without)):
            sample_flux(pipe, 5)
            change(pipe)
            counted = sum(session.stats.forecast.values())
            assert np.array_equal(sample_flux(pipe), expected)
            assert sum(session.stats.forecast.values()) > counted
    assert np.array_equal(sample_flux(pipe), plain)


def test_a_lora_loaded_in_the_middle_of_a_run_is_refused(flux: Pipeline) -> None:
    def load(pipe: Pipeline, step: int, timestep: Any, kwargs: Any) -> Any:
        if step == 3:
            load_lora(pipe)
        return kwargs

    with pytest.raises(PolicyError, match="load it between two requests"), apply(flux, policy(Modules())):
        sample_flux(flux, callback_on_step_end=load)


@pytest.mark.parametrize(
    "config",
    [
        diffusers.FirstBlockCacheConfig(threshold=0.1),
        diffusers.TaylorSeerCacheConfig(cache_interval=3),
        diffusers.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
        ),
    ],
)
def test_another_cache_is_refused_by_name(config: Any) -> None:
    flux, name = tiny_flux(), type(config).__name__
    with apply(flux, policy()):
        sample_flux(flux)
        flux.transformer.enable_cache(config)
        with pytest.raises(PolicyError, match=name):
            sample_flux(flux)
        flux.transformer.disable_cache()
        sample_flux(flux)
    flux.transformer.enable_cache(config)
    with pytest.raises(PolicyError, match=name), apply(flux, policy()):
        pass


def test_a_cache_without_a_config_and_one_of_another_tool(flux: Pipeline) -> None:
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

    other = copy.deepcopy(flux)
    apply_first_block_cache(flux.transformer, FirstBlockCacheConfig(threshold=0.1))
    other.transformer._is_cached = True
    for pipe, name in ((flux, "FBC"), (other, "cache-dit")):
        with pytest.raises(PolicyError, match=name), apply(pipe, policy()):
            pass


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_contexts_on_one_scheduler_left_in_any_order(order: tuple[int, int]) -> None:
    pipes = [tiny_dit(), tiny_dit(1)]
    pipes[1].scheduler = pipes[0].scheduler
    clean = [state(pipe) for pipe in pipes]
    expected = []
    for pipe in pipes:
        with apply(pipe, policy()):
            expected.append(sample_dit(pipe))
    contexts = [ExitStack(), ExitStack()]
    for context, pipe in zip(contexts, pipes, strict=True):
        context.enter_context(apply(pipe, policy()))
    contexts[order[0]].close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(sample_dit(pipes[order[1]]), expected[order[1]])
    contexts[order[1]].close()
    assert [state(pipe) for pipe in pipes] == clean
    copy.deepcopy(pipes[0].scheduler)
