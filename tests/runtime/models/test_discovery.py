"""Blocks are found by a call of them, proven, or refused with the reason."""

import copy
import weakref
from dataclasses import replace
from typing import Any, ClassVar

import diffusers
import pytest
import torch
from tests.tiny import policy
from torch import Tensor, nn

from cachesmith.policies import Fixed, Modules, PolicyError, Reuse, Segments, Stack, Taylor
from cachesmith.runtime import (
    ADAPTERS,
    Adapter,
    BlockList,
    DiscoveryError,
    adapter_for,
    apply,
    discover,
    learn,
    register,
    resolve_units,
)
from cachesmith.runtime.forecast.estimator import Estimator
from cachesmith.runtime.models import adapters
from cachesmith.runtime.models.rows import ROWS, rows_text
from cachesmith.zoo import NO_ROW, VARIANTS, ZOO, transformer_classes
from cachesmith.zoo.survey import find, survey

pytestmark = pytest.mark.filterwarnings("ignore")


class Block(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        out: Tensor = x + self.two(torch.tanh(self.one(x + temb)))
        return out


class Network(nn.Module):
    """A denoiser that diffusers does not know: an embedding, blocks, a head."""

    def __init__(self, block: Any = Block, count: int = 4):
        super().__init__()
        self.embed, self.head = nn.Linear(8, 8), nn.Linear(8, 8)
        self.layers = nn.ModuleList([block() for _ in range(count)])

    def forward(self, latent: Tensor, time: Tensor) -> Tensor:
        x = self.embed(latent)
        for layer in self.layers:
            x = layer(x, time.reshape(-1, 1, 1))
        out: Tensor = self.head(x)
        return out


def found(network: nn.Module, *inputs: Any) -> Any:
    torch.manual_seed(0)
    given = inputs or (torch.randn(1, 5, 8), torch.tensor([3.0]))
    return discover(network, lambda: network(*given))


def refused(network: nn.Module, *inputs: Any) -> str:
    with pytest.raises(DiscoveryError) as caught:
        found(network, *inputs)
    assert "write an Adapter for it and pass it to cachesmith.runtime.register" in str(caught.value)
    return str(caught.value)


def test_an_unknown_network() -> None:
    network = Network()
    discovery = found(network)
    assert discovery.adapter == Adapter((BlockList("layers", ("x",)),), live=("x",), timestep="time")
    torch.manual_seed(0)
    assert torch.equal(discovery.result, network(torch.randn(1, 5, 8), torch.tensor([3.0])))
    assert all("forward" not in vars(module) for module in network.modules())


def test_blocks_that_another_tool_wrapped_are_found_alike() -> None:
    network = Network()
    expected = found(network).adapter
    for layer in network.layers:
        layer.forward = lambda *args, plain=layer.forward, **kwargs: plain(*args, **kwargs)
    assert found(network).adapter == expected


def test_the_file_of_rows_is_what_this_diffusers_has() -> None:
    """A new release shows as a difference: `cachesmith adapters --check --write` brings the file up to date."""
    found = {f.name: f.adapter for f in survey(ZOO, VARIANTS) if f.adapter is not None}
    assert rows_text(found, diffusers.__version__) == ROWS.read_text(encoding="utf-8")


def test_every_class_of_diffusers_has_a_tiny_model() -> None:
    by_call = {owner for owner, _ in VARIANTS.values()}
    assert set(ADAPTERS) | set(NO_ROW) | by_call == transformer_classes()
    assert len(ADAPTERS) + len(by_call) >= 70


@pytest.mark.parametrize("name", [name for name in ZOO if name in NO_ROW])
def test_what_is_refused_says_why(name: str) -> None:
    with pytest.raises(DiscoveryError, match=NO_ROW[name]):
        find(name, ZOO[name])


def test_streams_that_are_not_there_are_not_cached() -> None:
    adapter = find(*VARIANTS["Kandinsky6Transformer3DModel (no audio)"])
    assert (adapter.lists[0].streams, adapter.live, adapter.empty) == (("vis", "aud"), ("vis",), ("aud",))
    model = ZOO["Kandinsky6Transformer3DModel"].build("Kandinsky6Transformer3DModel")
    adapters.remember(model, adapter)
    assert [unit.streams for unit in resolve_units(model, Segments(starts=(0, 1)))] == [("vis",), ("vis",)]


def test_lists_that_cannot_matter() -> None:
    def idle(name: str) -> dict[str, int]:
        return {entry.path: entry.kept for entry in ADAPTERS[name].idle}

    assert idle("WanVACETransformer3DModel") == {"vace_blocks": 0}
    # spatial and temporal blocks take turns: the last temporal one is after the last that is cached
    assert idle("LatteTransformer3DModel") == {"temporal_transformer_blocks": 1}
    assert idle("HunyuanVideoTransformer3DModel") == {"context_embedder.token_refiner.refiner_blocks": 0}
    # these refine what enters the cached blocks
    assert idle("Lumina2Transformer2DModel") == {} == idle("ZImageTransformer2DModel")


def test_skips_are_cached_all_together() -> None:
    model = ZOO["HunyuanDiT2DModel"].build("HunyuanDiT2DModel")
    assert len(resolve_units(model, Stack())) == 1
    for units in (Segments(starts=(0, 1)), Modules()):
        with pytest.raises(PolicyError, match="only be cached all together; use a policy with units `stack`"):
            resolve_units(model, units)


class InPlace(Block):
    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        return x.add_(self.two(self.one(x + temb)))


class Remembering(Block):
    def forward(self, x: Tensor, temb: Tensor, cache: dict[str, Tensor] | None = None) -> Tensor:
        if cache is not None:
            cache["keys"] = x
        return super().forward(x, temb)


class Cached(Network):
    def forward(self, latent: Tensor, time: Tensor, cache: Any = None) -> Tensor:
        x = self.embed(latent)
        for layer in self.layers:
            x = layer(x, time.reshape(-1, 1, 1), cache)
        out: Tensor = self.head(x)
        return out


class Narrowing(Block):
    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        return super().forward(x, temb)[:, :-1]


class Drifting(Network):
    """Another result every time."""

    calls = 0

    def forward(self, latent: Tensor, time: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(latent, time) + self.calls


class Noisy(Network):
    def forward(self, latent: Tensor, time: Tensor) -> Tensor:
        return super().forward(latent + torch.randn_like(latent), time)


def test_reasons() -> None:
    assert "the stream `x` into layers is written to in place" in refused(Network(InPlace))
    assert "`cache` is written to by layers" in refused(
        Cached(Remembering), torch.randn(1, 5, 8), torch.tensor([3.0]), {}
    )
    assert "`x` has another shape or dtype after layers than before layers" in refused(Network(Narrowing))
    assert "with layers replaced by what they returned, the call returns something else" in refused(
        Drifting()
    )
    assert "it has no list of blocks" in refused(nn.Linear(8, 8), torch.randn(1, 8))


def test_what_the_call_returned_is_not_lost() -> None:
    network = Network(Narrowing)
    with pytest.raises(DiscoveryError) as caught:
        found(network)
    torch.manual_seed(0)
    assert torch.equal(caught.value.result, network(torch.randn(1, 5, 8), torch.tensor([3.0])))


def test_a_cache_that_is_only_read_is_no_obstacle() -> None:
    assert found(Cached(Remembering)).adapter.live == ("x",)


def test_random_numbers_are_those_of_one_call() -> None:
    network = Noisy()
    inputs = torch.randn(1, 5, 8), torch.tensor([3.0])
    torch.manual_seed(1)
    expected, after = network(*inputs), torch.rand(1)
    torch.manual_seed(1)
    discovery = discover(network, lambda: network(*inputs))
    assert torch.equal(discovery.result, expected) and torch.equal(torch.rand(1), after)


class Counting(Block):
    """Counts the outputs of all blocks that are alive."""

    alive: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()
    most = 0

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        out = super().forward(x, temb)
        Counting.alive.add(out)
        Counting.most = max(Counting.most, len(Counting.alive))
        return out


def test_memory_does_not_grow_with_the_number_of_blocks() -> None:
    for count in (4, 32):
        Counting.most = 0
        network = Network(Counting, count)
        found(network)
        assert Counting.most <= 4


def test_what_is_learned_and_registered_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "_REGISTERED", {})
    network = Network()
    with pytest.raises(PolicyError, match=r"no adapter for Network"):
        adapter_for(network)
    inputs = torch.randn(1, 5, 8), torch.tensor([3.0])
    learned = learn(network, lambda: network(*inputs))
    assert adapter_for(network) is learned and len(resolve_units(network, Segments(starts=(0, 1)))) == 2
    own = replace(learned, lists=(BlockList("layers", ("x",)),), timestep="clock")
    register(Network, own)
    assert adapter_for(network) is own is adapter_for(Network())


def sample(network: nn.Module, scheduler: Any, **inputs: Any) -> Tensor:
    scheduler.set_timesteps(8)
    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t[None], **inputs), t, x).prev_sample
    return x


def scheduler() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


class Calls(Block):
    computed = 0

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        Calls.computed += 1
        return super().forward(x, temb)


@pytest.mark.parametrize("units", [Stack(), Segments(starts=(0, 2))])
def test_the_first_call_of_an_unknown_class_tells_its_blocks(units: Any) -> None:
    torch.manual_seed(0)
    network = Network(Calls)
    plan = scheduler()
    expected = sample(network, plan)
    with apply(network, policy(units, Fixed(mask="C" * 8), Reuse()), scheduler=plan) as session:
        assert torch.equal(sample(network, plan), expected)
    assert session.stats.nfc == 8 and not session.stats.fallbacks
    assert all("forward" not in vars(module) for module in network.modules())


def test_the_first_call_is_computed_once_and_forecast_from() -> None:
    torch.manual_seed(0)
    network = Network(Calls)
    plan = scheduler()
    Calls.computed = 0
    with apply(network, policy(Stack(), Fixed(mask="CFCFFFFF"), Reuse()), scheduler=plan) as session:
        sample(network, plan)
    assert Calls.computed == 2 * 4 and session.stats.nfc == 2 and not session.stats.fallbacks
    assert session.stats.forecast == {"stack": 6}
    again = Calls.computed
    with apply(network, policy(Stack(), Fixed(mask="CFFFFFFF"), Reuse()), scheduler=plan):
        sample(network, plan)
    assert Calls.computed == again + 4


@pytest.mark.parametrize("units", [Stack(), Segments(starts=(0, 2))])
def test_a_run_that_looks_is_the_run_that_knows(units: Any) -> None:
    plan, chosen = scheduler(), policy(units, Fixed(mask="CFCFFCFF"), Taylor(order=1))
    results = []
    for learned in (False, True):
        torch.manual_seed(0)
        network = Network()
        if learned:
            adapters.remember(network, found(network).adapter)
        with apply(network, chosen, scheduler=plan) as session:
            results.append(sample(network, plan))
        assert session.stats.nfc == 3 and not session.stats.fallbacks
    assert torch.equal(*results)


@pytest.mark.parametrize("sampled", [False, True])
def test_a_copy_of_a_network_that_waits_for_its_first_call_is_its_own(sampled: bool) -> None:
    torch.manual_seed(0)
    network, plan = Network(), scheduler()
    with apply(network, policy(Stack(), Fixed(mask="CFCFFFFF"), Reuse()), scheduler=plan):
        if sampled:
            sample(network, plan)
        copied = copy.deepcopy(network)
        for parameter in copied.layers.parameters():
            parameter.data.zero_()
        alone = Network()
        alone.load_state_dict(copied.state_dict())
        assert torch.equal(sample(copied, scheduler()), sample(alone, scheduler()))


def test_what_cannot_be_proven_is_refused_in_the_first_call() -> None:
    network, plan = Network(Narrowing), scheduler()
    with (
        pytest.raises(DiscoveryError, match="no blocks of Network can be cached"),
        apply(network, policy(Stack()), scheduler=plan),
    ):
        sample(network, plan)
    assert "forward" not in vars(network) and network(torch.randn(1, 5, 8), torch.ones(1)).shape == (1, 1, 8)


def test_a_call_that_writes_to_a_cache_is_never_taken_for_an_example() -> None:
    """It is computed as it is, once; the next call that writes to nothing tells the blocks."""

    class Prefilled(Cached):
        def forward(self, latent: Tensor, time: Tensor, cache: Any = None) -> Tensor:
            return super().forward(latent, time, cache if "keys" not in (cache or {}) else None)

    torch.manual_seed(0)
    network, plan = Prefilled(Remembering), scheduler()
    cache: dict[str, Tensor] = {}
    expected = sample(network, plan, cache={})
    with apply(network, policy(Stack(), Fixed(mask="C" * 8), Reuse()), scheduler=plan) as session:
        assert torch.equal(sample(network, plan, cache=cache), expected)
    assert session.stats.nfc == 7 and "keys" in cache


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_first_call_that_is_interrupted_leaves_the_next_one_to_tell(error: type[BaseException]) -> None:
    torch.manual_seed(0)
    network, plan = Network(), scheduler()

    def fail(*_: Any) -> None:
        raise error("out of memory")

    with apply(network, policy(Stack(), Fixed(mask="CFCFFFFF"), Reuse()), scheduler=plan) as session:
        hook = network.layers[2].register_forward_pre_hook(fail)
        with pytest.raises(error):
            sample(network, plan)
        hook.remove()
        sample(network, plan)
    assert session.stats.nfc == 2 and all("forward" not in vars(module) for module in network.modules())


def test_what_is_refused_once_is_refused_again() -> None:
    network, plan = Network(Narrowing), scheduler()
    with apply(network, policy(Stack()), scheduler=plan):
        for _ in range(2):
            with pytest.raises(DiscoveryError, match="no blocks of Network can be cached"):
                sample(network, plan)
    assert "forward" not in vars(network)


def test_a_model_that_empties_its_lists_can_be_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Emptying(Network):
        def forward(self, latent: Tensor, time: Tensor, extra: list[Tensor] | None = None) -> Tensor:
            x = latent if extra is None else latent + extra.pop()
            return super().forward(x, time)

    def run() -> Tensor:
        plan.set_timesteps(8)
        x = torch.ones(1, 5, 8)
        with torch.no_grad():
            for t in plan.timesteps:
                x = plan.step(network(x, t[None], extra=[x]), t, x).prev_sample
        return x

    torch.manual_seed(0)
    network, plan, forecast = Emptying(), scheduler(), Estimator.output

    def spoilt(self: Any, *args: Any) -> Any:
        return tuple(output * torch.nan for output in forecast(self, *args))

    expected = run()
    monkeypatch.setattr(Estimator, "output", spoilt)
    with apply(network, policy(Stack(), Fixed(mask="CFCFFFFF"), Reuse()), scheduler=plan) as session:
        assert torch.equal(run(), expected)
    assert session.stats.forecast["stack"] == 6
