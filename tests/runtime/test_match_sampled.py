"""What is really sampled against what the policy was made for: scales, sizes, precision, attention, LoRAs, weights."""

import warnings
from typing import Any

import diffusers
import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance
from tests.calibrate.sampled import sampler_of
from tests.tiny import Pipeline, policy, sample_dit, sample_flux, tiny_dit, tiny_flux
from torch import nn

from cachesmith.policies import Mismatch, Policy, PolicyError, decode, encode
from cachesmith.runtime import apply, replicate
from cachesmith.runtime.models.fingerprint import model_key, weights_hash
from cachesmith.runtime.models.weights import same_weights, weights_sketch


def said(pipe: Pipeline, chosen: Policy, sample: Any, **kwargs: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with apply(pipe, chosen):
            for _ in range(2):
                sample(pipe, **kwargs)
    return [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]


def test_the_pipelines_own_default_is_the_scale_that_was_sampled(dit: Pipeline) -> None:
    """DiTPipeline takes 4 where none is given, and has no attribute that says so."""
    sampler = sampler_of(dit, sample_dit)
    assert sampler.scales == {"guidance_scale": (4.0, 4.0)} and sampler.guidance_range == (4.0, 4.0)
    chosen = policy(sampler=sampler)
    assert not said(dit, chosen, sample_dit) and not said(dit, chosen, sample_dit, guidance_scale=4)
    (told,) = said(dit, chosen, sample_dit, guidance_scale=8.0)
    assert "guidance scale of 4, but this is 8 (mismatch.guidance)" in told


def test_every_argument_that_is_a_scale(flux: Pipeline) -> None:
    sampler = sampler_of(flux, sample_flux)
    assert sampler.scales == {"guidance_scale": (3.5, 3.5), "true_cfg_scale": (1.0, 1.0)}
    told = said(flux, policy(sampler=sampler), sample_flux, true_cfg_scale=2.0)
    assert any("true cfg scale of 1, but this is 2" in text for text in told)
    inside = said(flux, policy(sampler=sampler), sample_flux, joint_attention_kwargs={"scale": 0.5})
    assert any("joint attention kwargs.scale of 1, but this is 0.5" in text for text in inside)


def test_guiders_that_a_pipeline_has_as_parts(dit: Pipeline) -> None:
    """What HunyuanVideo-1.5 is guided by is no argument of its call."""
    dit.guider = ClassifierFreeGuidance(guidance_scale=4.0, stop=0.5)
    sampler = sampler_of(dit, sample_dit)
    assert sampler.scales is not None and sampler.scales["guider_guidance_stop"] == (0.5, 0.5)
    assert not said(dit, policy(sampler=sampler), sample_dit)
    dit.guider.guidance_scale = 5.0
    (told,) = said(dit, policy(sampler=sampler), sample_dit)
    assert "guider guidance scale of 4, but this is 5 (mismatch.guidance)" in told
    dit.guider = None
    assert not said(dit, policy(sampler=sampler), sample_dit)


def test_a_range_of_scales(dit: Pipeline) -> None:
    sampler = sampler_of(dit, sample_dit, given=[{"guidance_scale": 6.0}])
    assert sampler.guidance_range == (4.0, 6.0) and sampler.arguments == {}
    assert not said(dit, policy(sampler=sampler), sample_dit, guidance_scale=5.0)
    assert said(dit, policy(sampler=sampler), sample_dit, guidance_scale=6.5)


@pytest.mark.parametrize("action", ["warn", "error", "disable"])
def test_another_size(flux: Pipeline, action: Any) -> None:
    sampler = sampler_of(flux, sample_flux)
    assert sampler.arguments == {"guidance_scale": 3.5, "true_cfg_scale": 1.0, "height": 16, "width": 16}
    chosen = policy(sampler=sampler, mismatch=Mismatch(size=action))
    assert not said(flux, chosen, sample_flux, seed=4, batch=2)
    message = r"size of 16 x 16 \(latents of .*\), but this is 24 x 24 \(latents of .*\)"
    if action == "error":
        with pytest.raises(PolicyError, match=message), apply(flux, chosen):
            sample_flux(flux, size=24)
        return
    with pytest.warns(RuntimeWarning, match=message), apply(flux, chosen) as session:
        sample_flux(flux, size=24)
    assert bool(session.stats.forecast) == (action == "warn")


def test_settings_that_no_noise_level_shows(dit: Pipeline) -> None:
    sampler = sampler_of(dit, sample_dit)
    dit.scheduler = diffusers.DDIMScheduler(clip_sample=False)
    (told,) = said(dit, policy(sampler=sampler), sample_dit)
    assert "DDIMScheduler with clip_sample True, but this is clip_sample False" in told


def test_noise_levels_that_differ_between_equal_ends(dit: Pipeline) -> None:
    sampler = sampler_of(dit, sample_dit)
    moved = [*sampler.sigmas]
    moved[5] *= 1.2
    other = sampler.model_copy(update={"sigmas": tuple(moved)})
    chosen = policy(sampler=other, mismatch=Mismatch(sigmas="error"))
    with pytest.raises(PolicyError, match=r"at step 6\), but this is .* at step 6\)"), apply(dit, chosen):
        sample_dit(dit)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_told_as_such_and_is_no_other_model(dtype: torch.dtype) -> None:
    pipe = tiny_dit()
    chosen = policy(model=model_key(pipe.transformer))
    pipe.transformer.to(dtype)
    assert same_weights(weights_sketch(pipe.transformer) or (), weights_sketch(tiny_dit().transformer) or ())
    (told,) = _at_entry(pipe, chosen)
    assert f"the dtype float32, but this is {str(dtype)[6:]}" in told


def _at_entry(pipe: Pipeline, chosen: Policy) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with apply(pipe, chosen):
            pass
    return [str(w.message) for w in caught]


@pytest.mark.parametrize("seed", range(4))
def test_other_weights_of_the_same_architecture(seed: int) -> None:
    sketches = [weights_sketch(tiny_flux(s).transformer) or () for s in (seed, seed, seed + 10)]
    assert same_weights(*sketches[:2]) and not same_weights(sketches[0], sketches[2])


def in_place(weight: torch.Tensor, delta: torch.Tensor) -> None:
    weight.add_(delta)


def unseen(weight: torch.Tensor, delta: torch.Tensor) -> None:
    weight.data += delta  # as peft does, which counts no version


@pytest.mark.parametrize("change", [in_place, unseen])
def test_weights_that_change_between_two_requests(flux: Pipeline, change: Any) -> None:
    """As by `fuse_lora`."""
    chosen = policy(model=model_key(flux.transformer))
    with apply(flux, chosen):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sample_flux(flux)
        with torch.no_grad():
            weight = flux.transformer.transformer_blocks[0].attn.to_q.weight
            change(weight, 0.1 * weight.std() * torch.randn(weight.shape))
        with pytest.warns(RuntimeWarning, match="a model with others"):
            sample_flux(flux)


class Int8(torch.Tensor):
    """Knows nothing but what inference needs, as quantised tensors do."""

    @staticmethod
    def __new__(cls, values: torch.Tensor, scales: torch.Tensor) -> "Int8":
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=scales.dtype)

    def __init__(self, values: torch.Tensor, scales: torch.Tensor):
        self.values_, self.scales = values, scales

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            weight = args[1].values_.to(args[1].scales.dtype) * args[1].scales
            return nn.functional.linear(args[0], weight, *args[2:])
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].values_, args[0].scales)
        raise NotImplementedError(f"unimplemented operator {func}")


def quantise(transformer: nn.Module) -> None:
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight.detach()
            scales = weight.abs().amax(1, keepdim=True) / 127
            values = Int8((weight / scales).round().to(torch.int8), scales)
            module.weight = nn.Parameter(values, requires_grad=False)


def test_quantised_weights_are_named_and_never_crash(flux: Pipeline) -> None:
    chosen = policy(model=model_key(flux.transformer))
    quantise(flux.transformer)
    (told,) = said(flux, chosen, sample_flux)
    assert "the quantization none, but this is Int8" in told
    assert weights_hash(flux.transformer) is None
    assert not said(flux, policy(model=model_key(flux.transformer)), sample_flux)


@pytest.mark.usefixtures("process_backend")
def test_another_attention_backend(flux: Pipeline) -> None:
    chosen = policy(model=model_key(flux.transformer))
    assert not said(flux, chosen, sample_flux)
    flux.transformer.set_attention_backend("_native_math")
    (told,) = said(flux, chosen, sample_flux)
    assert "the attention backend native, but this is _native_math" in told
    with pytest.warns(RuntimeWarning, match="_native_math chooses its kernel for the whole process"):
        replicate(flux)


class LoraLayer(nn.Module):
    """What peft's layers tell of themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Identity()
        self.scaling = {"style": 1.0}
        self.active_adapters, self.disable_adapters = ["style"], False


def test_the_strength_of_a_lora(flux: Pipeline) -> None:
    flux.transformer.peft_config = {"style": object()}
    flux.transformer.lora = layer = LoraLayer()
    chosen = policy(model=model_key(flux.transformer))
    assert not said(flux, chosen, sample_flux)
    layer.scaling["style"] = 0.1
    (told,) = said(flux, chosen, sample_flux)
    assert "the LoRA adapters style at 1, but this is style at 0.1" in told
    layer.scaling["style"], layer.disable_adapters = 1.0, True
    (told,) = said(flux, chosen, sample_flux)
    assert "style at 0" in told


def test_a_policy_that_knows_less_is_written_as_before(dit: Pipeline) -> None:
    """Fields that came later are written only where they say something, so that older files keep their ids."""
    model, sampler = model_key(dit.transformer), sampler_of(dit, sample_dit)
    later = ("weights_sketch", "dtype", "quantization", "attention", "adapter_scales")
    older = policy(
        model=model.model_copy(update=dict.fromkeys(later)),
        sampler=sampler.model_copy(update=dict.fromkeys(("settings", "scales", "sizes"))),
    )
    written = older.document.model_dump_json()
    assert not [name for name in (*later, "settings", "scales", "sizes", '"size"') if name in written]
    assert decode(encode(older)) == older
    newer = policy(model=model, sampler=sampler, mismatch=Mismatch(size="error"))
    assert decode(encode(newer)) == newer != older
    assert not said(dit, older, sample_dit, guidance_scale=9.0)[1:]


def test_what_is_different_is_told_once_a_session_and_checked_at_every_run(dit: Pipeline) -> None:
    chosen = policy(sampler=sampler_of(dit, sample_dit))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with apply(dit, chosen):
            for scale in (4.0, 8.0, 8.0, 4.0, 9.0):
                sample_dit(dit, guidance_scale=scale)
    assert len([w for w in caught if "guidance scale" in str(w.message)]) == 2
