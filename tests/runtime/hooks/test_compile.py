"""Compiled models: blocks may be, the whole must not."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import Pipeline, policy, sample_dit, sample_flux, tiny_dit, tiny_flux

from cachesmith.policies import Interval, Lagrange, PolicyError, Segments, Stack, preset
from cachesmith.runtime import apply


def one_by_one(pipe: Pipeline) -> None:
    for blocks in (pipe.transformer.transformer_blocks, *_single(pipe)):
        for block in blocks:
            block.compile(backend="eager")


def wrapped(pipe: Pipeline) -> None:
    for blocks in (pipe.transformer.transformer_blocks, *_single(pipe)):
        for index, block in enumerate(blocks):
            blocks[index] = torch.compile(block, backend="eager")


def _single(pipe: Pipeline) -> list[Any]:
    return (
        [pipe.transformer.single_transformer_blocks]
        if hasattr(pipe.transformer, "single_transformer_blocks")
        else []
    )


COMPILERS = [one_by_one, wrapped]


@pytest.mark.parametrize(("build", "sample"), [(tiny_dit, sample_dit), (tiny_flux, sample_flux)])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_compiled_blocks_are_routed(build: Any, sample: Any, compiler: Any) -> None:
    pipe = build()
    expected = sample(pipe)
    chosen = [policy(units) for units in (Stack(), Segments(starts=(0, 1, 3)))]
    cached = []
    for each in chosen:
        with apply(pipe, each):
            cached.append(sample(pipe))
    compiler(pipe)
    np.testing.assert_allclose(sample(pipe), expected, atol=1e-5)
    for each, image in zip(chosen, cached, strict=True):
        with apply(pipe, each) as session:
            np.testing.assert_allclose(sample(pipe), image, atol=1e-4)
        assert session.stats.forecast and not session.stats.fallbacks
    np.testing.assert_allclose(sample(pipe), expected, atol=1e-5)


def test_diffusers_own_way(flux: Pipeline) -> None:
    with apply(flux, policy(Stack())):
        cached = sample_flux(flux)
    flux.transformer.compile_repeated_blocks(backend="eager")
    with apply(flux, policy(Stack())) as session:
        np.testing.assert_allclose(sample_flux(flux), cached, atol=1e-4)
    assert session.stats.forecast["stack"] == 6


@pytest.mark.parametrize("compiler", COMPILERS)
def test_modules_of_compiled_blocks_are_refused(dit: Pipeline, compiler: Any) -> None:
    compiler(dit)
    with pytest.raises(PolicyError, match="block 0 is compiled as a whole"), apply(dit, preset("fora")):
        pass


def test_a_compiled_transformer_is_refused(dit: Pipeline) -> None:
    dit.transformer.compile(backend="eager")
    with pytest.raises(PolicyError, match="compile its blocks instead"), apply(dit, preset("fora")):
        pass
    dit = tiny_dit()
    dit.transformer = torch.compile(dit.transformer, backend="eager")
    with pytest.raises(PolicyError, match="compile its blocks instead"), apply(dit, preset("fora")):
        pass


def test_a_block_that_is_compiled_under_a_gate_that_looks_into_it(dit: Pipeline) -> None:
    """Refused at the next request, as it would be from the start."""
    with apply(dit, preset("teacache")):
        sample_dit(dit)
        dit.transformer.transformer_blocks[0].compile(backend="eager")
        with pytest.raises(PolicyError, match="modulated input"):
            sample_dit(dit)


def test_blocks_that_are_compiled_where_one_half_of_guidance_follows(flux: Pipeline) -> None:
    chosen = policy(Stack(follower="later"), Interval(interval=3), Lagrange(order=1))
    with apply(flux, chosen):
        expected = sample_flux(flux, true_cfg_scale=2.0)
        one_by_one(flux)
        assert np.array_equal(sample_flux(flux, true_cfg_scale=2.0), expected)
