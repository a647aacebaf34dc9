"""What a server does to a pipeline between two requests: LoRA, offloading, casting, compilation, other tools."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import diffusers
import torch
from tests.tiny import Pipeline
from torch import nn

CPU = torch.device("cpu")
LAYERS = ("single_transformer_blocks.0.proj_mlp", "transformer_blocks.0.attn.to_q")
HAS_PEFT = find_spec("peft") is not None


@dataclass(frozen=True)
class Change:
    """make: changes the pipeline. after: changes of which one must have been made, if any, and not been taken back by
    one of `unless`."""

    make: Callable[[Pipeline], None]
    after: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    shared: bool = True
    """Whether copies and workers of the changed pipeline can be made without us."""

    def possible(self, made: tuple[str, ...]) -> bool:
        """Whether it can be made after those that were."""
        return (not self.after or any(name in made for name in self.after)) and not any(
            name in made for name in self.unless
        )


def _lora(name: str, layer: str) -> Callable[[Pipeline], None]:
    def load(pipe: Pipeline) -> None:
        linear: Any = pipe.transformer.get_submodule(layer)
        draw = torch.Generator().manual_seed(len(name))
        path = f"transformer.{layer}"
        pipe.load_lora_weights(
            {
                f"{path}.lora_A.weight": torch.randn(4, linear.in_features, generator=draw) * 0.3,
                f"{path}.lora_B.weight": torch.randn(linear.out_features, 4, generator=draw) * 0.3,
            },
            adapter_name=name,
        )

    return load


def _accelerate(pipe: Pipeline) -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module  # type: ignore[import-untyped]

    for module in _leaves(pipe.transformer):
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))


def _no_accelerate(pipe: Pipeline) -> None:
    from accelerate.hooks import remove_hook_from_module

    for module in _leaves(pipe.transformer):
        remove_hook_from_module(module)


def _leaves(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if not list(module.children())]


def _profiler(pipe: Pipeline) -> None:
    for block in pipe.transformer.transformer_blocks:
        plain = block.forward
        block.forward = lambda *args, plain=plain, **kwargs: plain(*args, **kwargs)


def _compile(pipe: Pipeline) -> None:
    for block in pipe.transformer.transformer_blocks:
        block.compile(backend="eager")


def _cached_and_not(pipe: Pipeline) -> None:
    pipe.transformer.enable_cache(diffusers.TaylorSeerCacheConfig(cache_interval=3))
    pipe.transformer.disable_cache()


def _offload(**options: Any) -> Callable[[Pipeline], None]:
    return lambda pipe: pipe.transformer.enable_group_offload(CPU, CPU, **options)


OFFLOADS = ("offload blocks", "offload leaves", "accelerate hooks", "fp8 storage")

CHANGES: dict[str, Change] = {
    "bfloat16": Change(lambda pipe: pipe.to(torch.bfloat16), unless=("fp8 storage",)),
    "float32": Change(lambda pipe: pipe.to(torch.float32), after=("bfloat16",), unless=("fp8 storage",)),
    "profiler": Change(_profiler, unless=("profiler", *OFFLOADS), shared=False),
    "compiled blocks": Change(_compile, unless=("compiled blocks", *OFFLOADS), shared=False),
    "offload blocks": Change(
        _offload(offload_type="block_level", num_blocks_per_group=1), unless=OFFLOADS, shared=False
    ),
    "offload leaves": Change(_offload(offload_type="leaf_level"), unless=OFFLOADS, shared=False),
    "accelerate hooks": Change(_accelerate, unless=OFFLOADS, shared=False),
    "no accelerate hooks": Change(
        _no_accelerate, after=("accelerate hooks",), unless=("no accelerate hooks",), shared=False
    ),
    "fp8 storage": Change(
        lambda pipe: pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, pipe.transformer.dtype),
        unless=OFFLOADS,
        shared=False,
    ),
}
FLUX: dict[str, Change] = {
    "another cache, on and off": Change(_cached_and_not, unless=OFFLOADS),
}
LORA: dict[str, Change] = {
    "lora": Change(_lora("one", LAYERS[0]), unless=("lora", *OFFLOADS)),
    "second lora": Change(
        _lora("second", LAYERS[1]), after=("lora",), unless=("second lora", "no lora", *OFFLOADS)
    ),
    "lora at 0.3": Change(
        lambda pipe: pipe.set_adapters("one", 0.3), after=("lora",), unless=("no lora", "fused")
    ),
    "lora off": Change(lambda pipe: pipe.disable_lora(), after=("lora",), unless=("no lora", "fused")),
    "lora on": Change(lambda pipe: pipe.enable_lora(), after=("lora off",), unless=("no lora", "fused")),
    "fused": Change(lambda pipe: pipe.fuse_lora(), after=("lora",), unless=("no lora", "fused", *OFFLOADS)),
    "no lora": Change(
        lambda pipe: pipe.unload_lora_weights(), after=("lora",), unless=("no lora", "fused", *OFFLOADS)
    ),
}
ALL = CHANGES | FLUX | LORA


def changes_of(kind: str) -> dict[str, Change]:
    """Those that pipelines of this kind know."""
    if kind == "dit":
        return CHANGES
    return CHANGES | FLUX | (LORA if HAS_PEFT else {})
