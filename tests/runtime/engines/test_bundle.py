"""What is refused, or counted, when engines are bound to a pipeline."""

from dataclasses import replace

import pytest
import torch
from tests.shipped import Shipped
from tests.tiny import policy, sample_dit, tiny_dit

from cachesmith.policies import EngineError, Modules, preset
from cachesmith.runtime import apply, open_bundle, resolve_units
from cachesmith.runtime.engines.drop_weights import check_droppable


def test_a_gate_that_looks_into_the_first_block_keeps_the_weights(dit_bundle: Shipped) -> None:
    pipe, teacache = tiny_dit(), preset("teacache")
    refused = pytest.raises(
        EngineError,
        match="this profile looks at the modulated input of the first block, which takes the torch",
    )
    with refused, apply(pipe, teacache, bundle=dit_bundle.folder, drop_torch_weights=True):
        pass
    assert not any(p.is_meta for p in pipe.transformer.parameters())
    check_droppable(
        preset("easycache").profile(), resolve_units(pipe.transformer, policy().profile().units), bundle="b"
    )


def test_token_refresh_keeps_the_weights() -> None:
    units = resolve_units(tiny_dit().transformer, Modules())
    with pytest.raises(EngineError, match="this profile computes single tokens of a unit"):
        check_droppable(preset("toca").profile(), units, bundle="b")


@pytest.mark.parametrize(
    ("side", "message"),
    [
        ("inputs", "is given `class_labels`, which was not exported"),
        ("outputs", "does not make hidden_states"),
    ],
)
def test_a_manifest_with_other_names(dit_bundle: Shipped, side: str, message: str) -> None:
    """Without its output, a unit would give back its input without a word."""
    engines, pipe = open_bundle(dit_bundle.folder), tiny_dit()
    entry, *others = engines.manifest.segments
    renamed = tuple(spec.model_copy(update={"name": "foo"}) for spec in getattr(entry, side))
    manifest = engines.manifest.model_copy(
        update={"segments": (entry.model_copy(update={side: renamed}), *others)}
    )
    with (
        pytest.raises(EngineError, match=message),
        apply(pipe, dit_bundle.policy, bundle=replace(engines, manifest=manifest)),
    ):
        sample_dit(pipe)


def test_another_dtype(dit_bundle: Shipped) -> None:
    pipe = tiny_dit()
    pipe.transformer.to(torch.bfloat16)
    refused = pytest.raises(
        EngineError,
        match="compute in float32, the transformer's parameters are bfloat16; load the pipeline in float32",
    )
    with refused, apply(pipe, dit_bundle.policy, bundle=dit_bundle.folder):
        pass


def test_what_torch_computes_instead_is_counted(dit_bundle: Shipped) -> None:
    forgiving, pipe = open_bundle(dit_bundle.folder, outside="torch"), tiny_dit()
    with (
        pytest.warns(RuntimeWarning, match="torch computes what the engines cannot") as seen,
        apply(pipe, dit_bundle.policy, bundle=forgiving) as session,
    ):
        sample_dit(pipe, labels=(1, 2, 3, 4))
    (reason,) = session.stats.fallbacks
    assert "batch = 8 is outside the exported range 2 to 6" in reason and len(seen) == 1
    assert session.stats.fallbacks[reason] == session.stats.computed.total()


def test_cuda_graphs_are_for_tensorrt(dit_bundle: Shipped) -> None:
    with pytest.raises(EngineError, match="CUDA graphs are for backend tensorrt, this is onnxruntime"):
        open_bundle(dit_bundle.folder, cuda_graphs=True)


def test_a_lora_that_is_fused_between_two_requests(dit_bundle: Shipped) -> None:
    """Into weights that the engines do not look at."""
    pipe = tiny_dit()
    with apply(pipe, dit_bundle.policy, bundle=dit_bundle.folder):
        sample_dit(pipe)
        pipe.transformer.transformer_blocks[0].attn1.to_q.weight.data += 0.1
        with pytest.raises(EngineError, match=r"the weights differ .* as after fuse_lora\(\)"):
            sample_dit(pipe)
        pipe.transformer.transformer_blocks[0].attn1.to_q.weight.data -= 0.1
