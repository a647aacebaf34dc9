"""Token-wise caching: its limits are methods known already, and no sample sees another."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import Pipeline, sample_dit, sample_flux
from torch import Tensor, nn

from cachesmith.policies import (
    Clustered,
    Document,
    Fixed,
    Forecaster,
    Interval,
    Modules,
    Policy,
    PolicyError,
    Profile,
    Refresh,
    Relational,
    Reuse,
    Scored,
    Taylor,
    preset,
)
from cachesmith.runtime import ADAPTERS, apply, resolve_units
from cachesmith.runtime.models.units import is_tokenwise, network_units
from cachesmith.runtime.plan.cache_size import cache_bytes
from cachesmith.runtime.stats import NON_FINITE
from cachesmith.runtime.tensors.tokens import (
    best,
    best_of_each,
    cluster_tokens,
    put,
    spread,
    take,
    token_score,
)
from cachesmith.zoo import ZOO

MASK = "CCFFFCFFFFFC"
DIT = {"hidden_states": (4, 16, 32)}
FLUX = {"encoder_hidden_states": (1, 3, 32), "hidden_states": (1, 64, 32)}
RULES: list[Any] = [
    Scored(ratio=0.25, importance="norm", age_weight=0.1),
    Scored(ratio=0.25, importance="moved", slope=0.8),
    Scored(ratio=0.25, importance="random", every=2),
    Scored(ratio=0.25, importance="none", age_weight=1.0),
    Clustered(clusters=4, blend=0.1),
]


def tokenwise(refresh: Refresh | None, rows: Any = None, gate: Any = None) -> Policy:
    forecaster = Forecaster(rows=rows or Taylor(order=1), refresh=refresh)
    profile = Profile(units=Modules(), gate=gate or Fixed(mask=MASK), forecaster=forecaster)
    return Policy(Document(name="test", profiles={"default": profile}))


@pytest.mark.parametrize("rows", [Reuse(), Taylor(order=2)])
@pytest.mark.parametrize("rule", [Scored(ratio=1.0), Scored(ratio=1.0, importance="moved")])
def test_all_tokens_are_the_mlp(dit: Pipeline, rule: Refresh, rows: Any) -> None:
    computed = Fixed(mask=MASK, groups={"mlp": "C" * len(MASK)})
    with apply(dit, tokenwise(None, rows, computed)) as session:
        expected, nfc = sample_dit(dit), session.stats.nfc
    with apply(dit, tokenwise(rule, rows)) as session:
        assert np.array_equal(sample_dit(dit), expected)
    assert session.stats.nfc == pytest.approx(nfc)


@pytest.mark.parametrize("rule", [Scored(ratio=0.0), Scored(ratio=0.02), Clustered(every=1000)])
def test_no_tokens_are_the_plain_forecast(dit: Pipeline, rule: Refresh) -> None:
    gate = Fixed(mask="C" * 11 + "F") if isinstance(rule, Clustered) else None
    plain = tokenwise(None, gate=gate)
    with apply(dit, plain) as session:
        expected, nfc, held = sample_dit(dit), session.stats.nfc, session.stats.cache_bytes
    with apply(dit, tokenwise(rule, gate=gate)) as session:
        image = sample_dit(dit)
    if isinstance(rule, Scored):
        assert np.array_equal(image, expected)
        assert (session.stats.nfc, session.stats.cache_bytes) == (nfc, held)
    else:  # the one forecast step is the first after a computed one, which is refreshed
        assert not np.array_equal(image, expected) and session.stats.nfc > nfc


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rows", [Reuse(), Taylor(order=1)])
def test_more_tokens_are_nearer(dit: Pipeline, rule: Refresh, rows: Any) -> None:
    """What an MLP returns is nearer to what it would compute, where it is told that of some tokens."""
    assert error(dit, tokenwise(rule, rows)) < error(dit, tokenwise(None, rows))


def error(pipe: Pipeline, policy: Policy) -> float:
    """Summed distance of the first MLP's outputs under `policy` to what its weights make of the same inputs."""
    mlp, total = pipe.transformer.transformer_blocks[0].ff, 0.0
    weights = mlp.net

    def watch(_: Any, args: tuple[Tensor, ...], result: Tensor) -> None:
        nonlocal total
        true = args[0]
        for layer in weights:
            true = layer(true)
        total += float((result - true).norm())

    with apply(pipe, policy), mlp.register_forward_hook(watch):
        sample_dit(pipe)
    return total


@pytest.mark.parametrize("rule", RULES)
def test_the_rest_of_the_batch_is_ignored(dit: Pipeline, rule: Refresh) -> None:
    with apply(dit, tokenwise(rule)):
        alone = sample_dit(dit, seed=0, labels=(1,))
        batch = sample_dit(dit, seed=0, labels=(1, 2, 3))
    np.testing.assert_allclose(batch[:1], alone, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_requests_in_a_row_and_exact_bytes(dit: Pipeline, rule: Refresh) -> None:
    with apply(dit, tokenwise(rule)) as session:
        first = sample_dit(dit)
        sample_dit(dit, seed=5)
        assert np.array_equal(sample_dit(dit), first)
    assert session.plan is not None and cache_bytes(session.plan, DIT, 4) == session.stats.cache_bytes
    assert not session.stats.fallbacks


@pytest.mark.parametrize("rule", RULES)
def test_sequential_guidance(flux: Pipeline, rule: Refresh) -> None:
    """Branches count apart: each has a cache of its own, and each is refreshed."""
    policy = tokenwise(rule, gate=Interval(interval=4))
    with apply(flux, policy) as session:
        sample_flux(flux, true_cfg_scale=2.0)
    assert (
        session.plan is not None
        and cache_bytes(session.plan, FLUX, 4, branches=2) == session.stats.cache_bytes
    )
    # of three text tokens, a slope may leave none in the last block
    assert {"mlp.0", "mlp.1", "mlp_context.0"} <= set(session.stats.refreshed)
    assert all(unit.startswith("mlp") for unit in session.stats.refreshed)
    assert not session.stats.fallbacks
    guided = session.stats.nfc
    with apply(flux, policy) as session:
        sample_flux(flux)
    assert session.stats.nfc == pytest.approx(guided)


def test_computed_tokens_are_counted(dit: Pipeline) -> None:
    forecasts = MASK.count("F")
    with apply(dit, tokenwise(Scored(ratio=0.25))) as session:
        sample_dit(dit)
    assert session.stats.refreshed == {f"mlp.{i}": pytest.approx(forecasts / 4) for i in range(4)}
    assert session.stats.nfc == pytest.approx(MASK.count("C") + forecasts / 4 / 2)
    with apply(dit, tokenwise(Scored(ratio=0.25, every=2))) as session:
        sample_dit(dit)
    assert session.stats.refreshed["mlp.0"] == pytest.approx((2 + 3) / 4)  # of offsets 1 2 3 and 1 2 3 4 5
    with apply(dit, tokenwise(Scored(ratio=0.25, slope=1.0))) as session:
        sample_dit(dit)
    assert session.stats.refreshed["mlp.0"] == pytest.approx(forecasts / 2)
    assert "mlp.3" not in session.stats.refreshed


def test_age_takes_turns(dit: Pipeline) -> None:
    """With nothing but age, every token is computed once in four steps."""
    gate = Fixed(mask="CFFFFFFFFFFF")
    with apply(
        dit, tokenwise(Scored(ratio=0.25, importance="none", age_weight=1.0), Reuse(), gate)
    ) as session:
        sample_dit(dit)
        assert session._run is not None
        state = session._run.memory.branches["0"].histories["mlp.0"].tokens
    assert state is not None and all(
        sorted(row) == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 for row in state.marks.tolist()
    )


def test_a_dynamic_gate(dit: Pipeline) -> None:
    gate = Relational(thresholds=(0.5,), order=1)
    with apply(dit, tokenwise(Scored(importance="moved"), gate=gate)) as session:
        sample_dit(dit)
    assert session.stats.refreshed and not session.stats.fallbacks
    assert session.plan is not None and cache_bytes(session.plan, DIT, 4) == session.stats.cache_bytes


def test_tokens_that_are_not_finite_are_not_remembered(dit: Pipeline) -> None:
    def spoil(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output if output.shape[1] == 16 else output * torch.nan

    with apply(dit, tokenwise(Scored(ratio=0.25))) as session, pytest.warns(RuntimeWarning):
        handle = dit.transformer.transformer_blocks[0].ff.net[2].register_forward_hook(spoil)
        sample_dit(dit)
        handle.remove()
    assert session.stats.fallbacks[NON_FINITE] > 0


@pytest.mark.filterwarnings("ignore:cachesmith computed")
def test_tokens_that_are_not_finite_once_cost_one_step(dit: Pipeline) -> None:
    """What they were off by is forgotten, instead of spoiling every forecast up to the next computed step."""
    spoilt: list[int] = []

    def spoil(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        if output.shape[1] == 16 or spoilt:
            return output
        spoilt.append(1)
        return output * torch.nan

    with apply(dit, tokenwise(Scored(ratio=0.25))) as session:
        handle = dit.transformer.transformer_blocks[0].ff.net[2].register_forward_hook(spoil)
        sample_dit(dit)
        handle.remove()
    assert session.stats.fallbacks == {NON_FINITE: 1}


def test_what_is_not_tokenwise_is_refused(dit: Pipeline) -> None:
    whole = Forecaster(refresh=Scored())
    with pytest.raises(PolicyError, match="use the units `module`"):
        Policy(Document(name="x", profiles={"p": Profile(gate=Interval(), forecaster=whole)}))
    profile = Profile(units=Modules(), gate=Interval(), overrides={"attn": whole})
    with (
        apply(dit, Policy(Document(name="x", profiles={"p": profile}))),
        pytest.raises(PolicyError, match="attn cannot be computed token by token"),
    ):
        sample_dit(dit)


@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed")  # diffusers' own
@pytest.mark.parametrize("name", [n for n, a in ADAPTERS.items() if all(e.modules for e in a.lists)])
def test_what_is_called_tokenwise_is(name: str) -> None:
    """The outputs at some tokens are the outputs of some tokens; single blocks that join attention are not so."""
    model = ZOO[name].build(name)
    units = [u for u in network_units(resolve_units(model, Modules())) if is_tokenwise(u)]
    assert bool(units) == (name != "SanaTransformer2DModel")
    for unit in units:
        assert unit.group in ("mlp", "mlp_context") and len(unit.streams) == len(unit.members) == 1
        (module,) = unit.members
        width = next(m for m in module.modules() if isinstance(m, nn.Linear)).in_features
        x, index = torch.randn(2, 12, width), torch.tensor([[1, 5, 6], [0, 3, 11]])
        with torch.no_grad():
            torch.testing.assert_close(module(take(x, index)), take(module(x), index))


@pytest.mark.parametrize("name", ["toca", "duca", "clusca"])
def test_presets_run(dit: Pipeline, flux: Pipeline, name: str) -> None:
    with apply(dit, preset(name)) as session:
        assert np.isfinite(sample_dit(dit)).all()
    assert session.stats.refreshed
    with apply(flux, preset(name)) as session:
        assert np.isfinite(sample_flux(flux)).all()
    assert not session.stats.fallbacks and all(name.startswith("mlp") for name in session.stats.refreshed)


def test_take_and_put() -> None:
    x, index = torch.randn(2, 6, 3), torch.tensor([[0, 4], [2, 3]])
    assert torch.equal(put(x, index, take(x, index)), x)
    changed = put(x, index, torch.zeros(2, 2, 3))
    assert [int((row.abs().sum(-1) == 0).sum()) for row in changed] == [2, 2]
    assert torch.equal(take(x, index)[1, 0], x[1, 2])


def test_best_are_in_order() -> None:
    assert best(torch.tensor([[3.0, 1.0, 9.0, 5.0]]), 2).tolist() == [[2, 3]]
    torch.testing.assert_close(token_score(torch.randn(3, 7, 2)).norm(dim=1), torch.ones(3))
    assert torch.equal(token_score(torch.zeros(1, 4, 2)), torch.zeros(1, 4))


def test_clusters_of_separate_heaps() -> None:
    heaps = torch.arange(12) % 3
    x = (torch.eye(3)[heaps] * 10 + torch.randn(12, 3) * 0.1).expand(2, 12, 3)
    labels = cluster_tokens(x, 3, 5)
    assert all(len({int(v) for v in labels[0, heaps == h]}) == 1 for h in range(3))
    assert len({int(v) for v in labels[0]}) == 3
    chosen = best_of_each(torch.rand(1, 12), labels, 3)
    assert torch.equal(labels.gather(1, chosen), torch.arange(3).expand(2, 3))


def test_clusters_of_equal_tokens() -> None:
    """All but one cluster is empty: nothing is divided by zero."""
    labels = cluster_tokens(torch.ones(1, 8, 4), 4, 3)
    assert len({int(v) for v in labels[0]}) == 1
    assert best_of_each(torch.rand(1, 8), labels, 4).shape == (1, 4)


def test_spread_is_the_weighted_mean() -> None:
    x, values, labels = torch.randn(1, 4, 2), torch.randn(1, 2, 2), torch.tensor([[0, 1, 1, 0]])
    torch.testing.assert_close(spread(x, values, labels, 0.25), 0.75 * x + 0.25 * values[:, [0, 1, 1, 0]])
