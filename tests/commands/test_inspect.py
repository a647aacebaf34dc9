import hashlib
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
from tests.commands.shop import GOLDEN, Cli, Shop, fails, succeeds
from tests.policies.several import HIGH, LOW, several_policy
from tests.tiny import policy as small

from cachesmith.commands.show.plan import plan_table
from cachesmith.policies import Document, Fixed, Lagrange, ModelKey, Policy, SamplerKey, Stack, load, save
from cachesmith.policies.bundle.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    SegmentEntry,
    TensorSpec,
    encode_manifest,
)
from cachesmith.policies.rows import forecast_weights
from cachesmith.runtime.models.fingerprint import sampler_key
from cachesmith.runtime.models.sampler import axis_values, is_flow, noise_levels


def test_inspect_shows_everything(cli: Cli) -> None:
    said = succeeds(cli("inspect", GOLDEN))
    document = load(GOLDEN).document
    assert load(GOLDEN).id in said
    for part in (
        *document.profiles,
        "CCFFCFFC",
        "5 clusters + subspace + mixed scale",
        "31.50 (30.90 to 32.10)",
        "scale 0.700, spread 2 %, r2 0.990",
    ):
        assert part in said
    assert "CCFCFCFCFF" not in said and "decides while sampling" in said


def test_inspect_json(cli: Cli) -> None:
    shown = json.loads(succeeds(cli("inspect", GOLDEN, "--json")))
    policy = load(GOLDEN)
    assert shown["id"] == policy.id
    assert Document.model_validate_json(json.dumps(shown["document"])) == policy.document
    assert shown["arrays"]["modules/scales"] == {"dtype": "float32", "shape": [10, 1]}


def test_inspect_shows_an_interval_as_a_timeline(cli: Cli, shop: Shop) -> None:
    assert "CFFFFCFFFF" in succeeds(cli("inspect", shop.policy))


def test_inspect_prints_markup_of_a_file_as_it_is(cli: Cli, tmp_path: Path) -> None:
    document = load(GOLDEN).document
    assert document.model is not None
    nasty = document.model.model_copy(update={"pipeline": "[red]x", "adapters": ("[/nope]",)})
    policy = Policy(document.model_copy(update={"model": nasty}), load(GOLDEN).arrays)
    save(policy, tmp_path / "x.policy.safetensors")
    said = succeeds(cli("inspect", tmp_path / "x.policy.safetensors"))
    assert "[red]x" in said and "[/nope]" in said


def test_inspect_refuses_terminal_codes(cli: Cli, tmp_path: Path) -> None:
    document = load(GOLDEN).document
    assert document.model is not None
    nasty = document.model.model_copy(update={"pipeline": "\x1b[31m"})
    save(
        Policy(document.model_copy(update={"model": nasty}), load(GOLDEN).arrays),
        tmp_path / "x.policy.safetensors",
    )
    result = cli("inspect", tmp_path / "x.policy.safetensors")
    fails(result, "model.pipeline", "it holds control or format characters; write it without them")
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize("content", [b"", b"not a policy", b"\xff" * 64])
def test_inspect_refuses(cli: Cli, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.policy.safetensors"
    path.write_bytes(content)
    fails(cli("inspect", path), "error: cannot read")


def test_a_warning_is_no_result(cli: Cli, tmp_path: Path) -> None:
    result = cli("inspect", tmp_path / "none.policy.safetensors")
    fails(result, "No such file")
    assert result.stdout == ""


def test_inspect_prints_markup_of_a_bundle_as_it_is(cli: Cli, tmp_path: Path) -> None:
    graph, digest = b"\x12\x01a", hashlib.sha256(b"\x12\x01a").hexdigest()
    (tmp_path / "a.onnx").write_bytes(graph)
    stream = TensorSpec(name="hidden_states", dtype="float32", axes=(8,))
    entry = SegmentEntry(
        name="a", start=0, stop=1, inputs=(stream,), outputs=(stream.model_copy(update={"name": "out"}),),
        ranges={}, key="a" * 64, onnx=FileEntry(name="a.onnx", size=len(graph), sha256=digest),
    )  # fmt: skip
    model = ModelKey(pipeline="P", transformer="[/nope]x", config_hash="c" * 64, blocks=1)
    manifest = Manifest(
        target="onnxruntime", policy_id="0" * 16, policy_name="test", model=model, dtype="float32", opset=20,
        versions={"torch": "2.13.0+cpu"}, segments=(entry,),
    )  # fmt: skip
    (tmp_path / MANIFEST).write_bytes(encode_manifest(manifest))
    said = succeeds(cli("inspect", tmp_path))
    assert "[/nope]x, 1 blocks" in said and "hidden_states" in said


def test_inspect_shows_steps_computed_by_half(cli: Cli, tmp_path: Path) -> None:
    save(small(Stack(follower="second"), Fixed(mask="CHFFCF")), tmp_path / "x.policy.safetensors")
    said = succeeds(cli("inspect", tmp_path / "x.policy.safetensors"))
    assert "CHFFCF" in said and "stack; the second half follows" in said


def two_experts(folder: Path) -> Path:
    policy, file = several_policy(), folder / "two.policy.safetensors"
    sampler = SamplerKey(
        scheduler="UniPCMultistepScheduler", steps=8, sigmas=tuple(1 - i / 8 for i in range(8))
    )
    save(Policy(policy.document.model_copy(update={"sampler": sampler}), policy.arrays), file)
    return file


def test_inspect_shows_every_denoiser(cli: Cli, tmp_path: Path) -> None:
    said = succeeds(cli("inspect", two_experts(tmp_path)))
    assert HIGH in said and LOW in said and "40 blocks" in said and "30 blocks" in said
    assert said.count("transformer_2") == 3


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        diffusers.DDIMScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_a_plan_has_the_weights_that_a_run_takes(scheduler: Any) -> None:
    """Over the log signal-to-noise ratio, which for a flow is made otherwise of the same noise levels."""
    scheduler.set_timesteps(8)
    policy = small(rows=Lagrange(order=1), axis="log-snr", sampler=sampler_key(scheduler))
    times = axis_values("log-snr", noise_levels(scheduler), is_flow(scheduler))
    shown = [row["units"]["stack"] for row in plan_table(policy, None)]
    assert [step for step, each in enumerate(shown) if "weights" in each] == [2, 3, 5, 6]
    for step in (2, 3, 5, 6):
        past = [times[source] for source in shown[step]["sources"]]
        assert shown[step]["weights"] == forecast_weights(Lagrange(order=1), past, times[step])


def test_inspect_prints_one_plan_over_both_denoisers(cli: Cli, tmp_path: Path) -> None:
    file = two_experts(tmp_path)
    rows = json.loads(succeeds(cli("inspect", file, "--plan", "--json")))["plan"]
    letters = [
        "".join(
            "-" if row["units"][u] is None else "C" if "compute" in row["units"][u] else "F" for row in rows
        )
        for u in ("stack", "transformer_2/stack")
    ]
    assert letters == [HIGH, LOW]
    assert rows[4]["units"]["transformer_2/stack"]["sources"] == [3]
    said = succeeds(cli("inspect", file, "--plan"))
    assert "transformer_2/stack" in said and "F 3" in said


def test_edit_keeps_every_denoiser(cli: Cli, tmp_path: Path) -> None:
    file = two_experts(tmp_path)
    succeeds(cli("edit", file, "--mismatch", "size=error", "-o", tmp_path / "strict.policy.safetensors"))
    before, after = load(file), load(tmp_path / "strict.policy.safetensors")
    assert after.document.profiles == before.document.profiles and after.document.mismatch.size == "error"
