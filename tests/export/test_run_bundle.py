"""One suite for every backend: under the same policy it paints the pictures that torch paints.

To add a backend, name it in `BACKENDS`; those that need a GPU run where there is one (`pytest -m gpu`).
"""

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.shipped import DIT_CONFIG, FLUX_CONFIG, Shipped, dit_policy
from tests.tiny import policy, sample_dit, sample_flux, tiny_dit, tiny_flux

from cachesmith.export import export_bundle
from cachesmith.policies import (
    EngineError,
    Fixed,
    Interval,
    Lagrange,
    Mismatch,
    Policy,
    Segments,
    Stack,
    preset,
)
from cachesmith.policies.bundle.manifest import Manifest
from cachesmith.runtime import Engines, Session, apply, open_bundle
from cachesmith.runtime.engines.backends import opener
from cachesmith.runtime.engines.segment_call import SegmentCall
from cachesmith.runtime.models.fingerprint import model_key

BACKENDS = [
    "onnxruntime",
    pytest.param("onnxruntime-cuda", marks=pytest.mark.gpu),
    pytest.param("onnxruntime-tensorrt", marks=pytest.mark.gpu),
    pytest.param("tensorrt", marks=pytest.mark.gpu),
    pytest.param("tensorrt-rtx", marks=pytest.mark.gpu),
]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def engines(shipped: Shipped, backend: str, tmp_path: Any) -> Engines:
    return loaded(shipped, backend, tmp_path)


def loaded(shipped: Shipped, backend: str, tmp_path: Any, **options: Any) -> Engines:
    if not backend.startswith("tensorrt"):
        device = "cpu" if backend == "onnxruntime" else "cuda"
        return open_bundle(shipped.folder, device, backend=backend.removesuffix("-cuda"), **options)
    folder = tmp_path / backend
    export_bundle(shipped.pipe, shipped.policy, folder, replace(shipped.config, target=backend))  # type: ignore[arg-type]
    return open_bundle(folder, "cuda", **options)


def paint(
    shipped: Shipped, engines: Engines | None, made: Policy | None = None, **options: Any
) -> np.ndarray:
    pipe = shipped.pipe.to(engines.device if engines is not None else "cpu")
    with apply(pipe, made or shipped.policy, bundle=engines):
        images: np.ndarray = shipped.sample(pipe, **options)
    return images


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = float(((a - b) ** 2).mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def test_same_pictures_as_torch(shipped: Shipped, engines: Engines) -> None:
    assert psnr(paint(shipped, engines), paint(shipped, None)) >= 60


def test_same_decisions_and_counts(shipped: Shipped, engines: Engines) -> None:
    def stats(bundle: Engines | None) -> Session:
        with apply(
            shipped.pipe.to("cpu" if bundle is None else bundle.device), shipped.policy, bundle=bundle
        ) as session:
            shipped.sample(shipped.pipe)
        return session

    torch_, engine = stats(None).stats, stats(engines).stats
    assert torch_.nfc == engine.nfc < 12 and torch_.cache_bytes == engine.cache_bytes
    assert [t.decision for t in torch_.trace] == [t.decision for t in engine.trace]


def test_uncached_through_engines(shipped: Shipped, engines: Engines) -> None:
    uncached = preset("uncached")
    assert psnr(paint(shipped, engines, uncached), paint(shipped, None, uncached)) >= 60


def test_one_half_of_guidance_through_engines(backend: str, tmp_path: Any) -> None:
    """Bundles for such policies take half a batch, of one picture at the least."""
    made = policy(Stack(follower="second"), Fixed(mask="CCHFHFCFHFFF"), Lagrange(order=1))
    folder = tmp_path / "bundle"
    config = replace(DIT_CONFIG, target="onnxruntime" if "onnx" in backend else backend)  # type: ignore[arg-type]
    export_bundle(pipe := tiny_dit(), made, folder, config)
    expected = paint(Shipped(pipe, made, folder, config, None, sample_dit), None, labels=(1,))  # type: ignore[arg-type]
    device = "cpu" if backend == "onnxruntime" else "cuda"
    engines = open_bundle(folder, device, backend=None if "tensorrt" in backend else "onnxruntime")
    assert [entry.ranges["batch"].min for entry in engines.manifest.segments] == [1]
    with apply(pipe.to(device), made, bundle=engines) as session:
        assert psnr(sample_dit(pipe, labels=(1,)), expected) >= 60
    assert session.stats.nfc == 4.5 and not session.stats.fallbacks


def test_stable_to_the_bit(shipped: Shipped, engines: Engines) -> None:
    assert (paint(shipped, engines) == paint(shipped, engines)).all()


def test_a_second_request_of_another_batch(shipped: Shipped, engines: Engines) -> None:
    more = {"labels": (3, 4, 5)} if shipped.sample is sample_dit else {"batch": 2, "size": 24}
    pipe = shipped.pipe.to(engines.device)
    with apply(pipe, shipped.policy, bundle=engines):
        first = shipped.sample(pipe)
        second = shipped.sample(pipe, **more)
    assert psnr(first, paint(shipped, None)) >= 60
    assert psnr(second, paint(shipped, None, **more)) >= 60


def test_results_belong_to_the_caller(shipped: Shipped, engines: Engines) -> None:
    entry = engines.manifest.segments[0]
    call = engines.calls[entry.name]
    assert isinstance(call, SegmentCall)
    extents = {axis: limits.opt for axis, limits in entry.ranges.items()}

    def inputs(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        shapes = {s.name: [extents[a] if isinstance(a, str) else a for a in s.axes] for s in entry.inputs}
        floating = {s.name: s.dtype.startswith("float") for s in entry.inputs}
        made = {
            n: torch.rand(s) if floating[n] else torch.ones(s, dtype=torch.int64) for n, s in shapes.items()
        }
        return {name: value.to(engines.device) for name, value in made.items()}

    first = call(inputs(0))
    kept = [value.clone() for value in first]
    second = call(inputs(1))
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))
    assert not torch.equal(first[0], second[0])


def test_engines_outlive_a_context_and_the_modules_come_back(shipped: Shipped, engines: Engines) -> None:
    before = paint(shipped, None)
    paint(shipped, engines)
    assert (paint(shipped, None) == before).all()


def test_dropped_weights(shipped: Shipped, engines: Engines) -> None:
    pipe = (tiny_dit if shipped.sample is sample_dit else tiny_flux)().to(engines.device)
    untouched = copy.deepcopy(pipe.transformer)
    parameters = sum(p.numel() for p in pipe.transformer.parameters())
    with (
        pytest.raises(EngineError, match="without a bundle"),
        apply(pipe, shipped.policy, drop_torch_weights=True),
    ):
        pass
    with apply(pipe, shipped.policy, bundle=engines, drop_torch_weights=True):
        dropped = shipped.sample(pipe)
    left = sum(p.numel() for p in pipe.transformer.parameters() if not p.is_meta)
    assert left < parameters / 2
    assert (dropped == paint(shipped, engines)).all()
    bound = shipped.policy.document.model_copy(
        update={"model": model_key(untouched, pipe), "mismatch": Mismatch(weights="error")}
    )
    with apply(pipe, Policy(bound, shipped.policy.arrays), bundle=engines):  # the fingerprint is remembered
        assert (shipped.sample(pipe) == dropped).all()
    with pytest.raises(EngineError, match="torch weights of this block were dropped"):
        shipped.sample(pipe)


def test_outside_the_exported_range(dit_bundle: Shipped, backend: str, tmp_path: Any) -> None:
    engines = loaded(dit_bundle, backend, tmp_path)
    with pytest.raises(
        EngineError, match=r"batch = 8 is outside the exported range 2 to 6; export with a wider range"
    ):
        paint(dit_bundle, engines, labels=(1, 2, 3, 4))
    forgiving = loaded(dit_bundle, backend, tmp_path, outside="torch")
    with pytest.warns(RuntimeWarning, match="torch computes what the engines cannot: .* batch = 8"):
        images = paint(dit_bundle, forgiving, labels=(1, 2, 3, 4))
    assert (images == paint(dit_bundle, None, labels=(1, 2, 3, 4))).all()
    refused = pytest.raises(EngineError, match="dropped weights leave torch nothing to compute with")
    with refused, apply(tiny_dit(), dit_bundle.policy, bundle=forgiving, drop_torch_weights=True):
        pass


def test_any_policy_whose_borders_are_there(dit_bundle: Shipped) -> None:
    engines = open_bundle(dit_bundle.folder)
    stack = policy(gate=Interval(interval=4))
    assert psnr(paint(dit_bundle, engines, stack), paint(dit_bundle, None, stack)) >= 60
    with pytest.raises(
        EngineError, match=r"segments blocks-000-002, blocks-002-004, whose borders do not make up the units"
    ):
        paint(dit_bundle, engines, policy(Segments(starts=(0, 1))))
    with pytest.raises(EngineError, match=r"do not make up the units attn\.0, mlp\.0"):
        paint(dit_bundle, engines, preset("fora"))


def test_lora_loaded_after_export(dit_bundle: Shipped) -> None:
    engines, pipe = open_bundle(dit_bundle.folder), tiny_dit()
    message = (
        r"LoRA style is loaded, but the engines were compiled with none .* fuse it .* export again, or run"
    )
    with apply(pipe, dit_bundle.policy, bundle=engines):
        pipe.transformer.peft_config = {"style": None}
        with pytest.raises(EngineError, match=message):
            sample_dit(pipe)
    with pytest.raises(EngineError, match=message), apply(pipe, dit_policy(), bundle=engines):
        pass


def test_other_weights_and_other_models(dit_bundle: Shipped) -> None:
    engines = open_bundle(dit_bundle.folder)
    refused = pytest.raises(EngineError, match=r"the weights differ .* as after fuse_lora\(\)")
    with refused, apply(tiny_dit(seed=1), dit_bundle.policy, bundle=engines):
        pass
    with (
        pytest.raises(
            EngineError, match=r"engines compute a DiTTransformer2DModel .* this is a FluxTransformer2DModel"
        ),
        apply(tiny_flux(), policy(), bundle=engines),
    ):
        pass


def test_an_argument_that_was_not_exported(flux_bundle: Shipped) -> None:
    engines, pipe = open_bundle(flux_bundle.folder), tiny_flux()
    with (
        apply(pipe, flux_bundle.policy, bundle=engines),
        pytest.raises(
            EngineError,
            match=r"stack is given `joint_attention_kwargs\.attention_mask`, which was not exported",
        ),
    ):
        sample_flux(pipe, joint_attention_kwargs={"attention_mask": torch.ones(1)})


def test_what_happens_between_blocks_is_not_left_out(flux_bundle: Shipped) -> None:
    pipe = tiny_flux()

    def controlled(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "controlnet_block_samples": [torch.ones(1)]}

    pipe.transformer.register_forward_pre_hook(controlled, with_kwargs=True)
    with (
        apply(pipe, flux_bundle.policy, bundle=open_bundle(flux_bundle.folder)),
        pytest.raises(EngineError, match="between the blocks of stack, as for a ControlNet"),
    ):
        sample_flux(pipe)


def test_opening_verifies_first(dit_bundle: Shipped, tmp_path: Any) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(dit_bundle.folder, folder)
    victim = next(folder.glob("*.data"))
    data = bytearray(victim.read_bytes())
    data[100] ^= 1
    victim.write_bytes(data)
    with pytest.raises(EngineError, match="was not opened"):
        open_bundle(folder)


def test_backends_by_name(dit_bundle: Shipped) -> None:
    manifest: Manifest = dit_bundle.exported.manifest
    with pytest.raises(EngineError, match="there is no backend 'openvino'; choose from onnxruntime"):
        opener("openvino", manifest)
    with pytest.raises(
        EngineError, match="holds engines for onnxruntime, not for tensorrt; export it with --target"
    ):
        opener("tensorrt", manifest)
    assert FLUX_CONFIG.target == "onnxruntime"


def test_a_provider_that_is_not_there(dit_bundle: Shipped) -> None:
    if torch.cuda.is_available():
        pytest.skip("it is there")
    with pytest.raises(EngineError, match="no CUDA device here"):
        open_bundle(dit_bundle.folder, "cuda")


@pytest.mark.parametrize("name", ["dit", "flux"])
def test_modules_one_by_one(name: str, request: pytest.FixtureRequest, tmp_path: Any) -> None:
    """Block-wise export of a policy that caches modules: the ones that are called as one have engines."""
    shipped: Shipped = request.getfixturevalue(f"{name}_bundle")
    pipe = tiny_dit() if name == "dit" else tiny_flux()
    # a single block is enough, and an export takes seconds
    del pipe.transformer.transformer_blocks[1:]
    made = preset("taylorseer", interval=3)
    export_bundle(pipe, made, tmp_path / "b", replace(shipped.config, blockwise=True, steps=3))
    engines = open_bundle(tmp_path / "b")
    with apply(pipe, made, bundle=engines) as session:
        images = shipped.sample(pipe)
    with apply(pipe, made) as expected:
        assert psnr(images, shipped.sample(pipe)) >= 60
    assert session.stats.nfc == expected.stats.nfc
