"""The commands on a folder of a pipeline with two experts, and a policy with a part for each."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.commands.shop import Cli, fails, succeeds
from tests.experts import STEPS, tiny_wan, two_experts
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from cachesmith.policies import Taylor, save
from cachesmith.runtime.models.fingerprint import sampler_key
from cachesmith.runtime.pipeline_call import PipelineCall

SIZE = {"height": 16, "width": 16, "num_frames": 5}
ASK = tuple(str(part) for name, value in SIZE.items() for part in (f"--{name.replace('_', '-')}", value))
"""The same size as options."""


def tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "red": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `model`, `x.policy.safetensors` and `prompts.txt`."""
    made, pipe = tmp_path_factory.mktemp("experts"), tiny_wan()
    config = UMT5Config(vocab_size=4, d_model=32, d_kv=4, d_ff=8, num_layers=1, num_heads=1)
    encoder: Any = UMT5EncoderModel(config)
    pipe.register_modules(tokenizer=tokenizer(), text_encoder=encoder.eval())
    pipe.save_pretrained(made / "model")
    pipe.scheduler.set_timesteps(STEPS)
    sampler = sampler_key(pipe.scheduler, "sequential", [PipelineCall({"guidance_scale": 4.0})])
    save(two_experts(pipe, Taylor(order=1), nfc=5.0, sampler=sampler), made / "x.policy.safetensors")
    prompt = {"prompt": "red", "max_sequence_length": 8, **SIZE}
    (made / "prompts.txt").write_text(f"{json.dumps(prompt)}\n" * 2)
    return made


def test_run(cli: Cli, folder: Path, tmp_path: Path) -> None:
    model, policy, out = folder / "model", folder / "x.policy.safetensors", tmp_path / "x.mp4"
    told = succeeds(cli("run", model, "--policy", policy, "--prompt", "red", "--out", out, "--json", *ASK))
    facts = json.loads(told)
    assert (facts["nfc"], facts["steps"], facts["fallbacks"]) == (5.0, STEPS, {})
    assert facts["arguments"]["guidance_scale"] == 4.0 and out.stat().st_size > 0


def test_bench(cli: Cli, folder: Path) -> None:
    result = cli(
        "bench", folder / "model", "--policy", folder / "x.policy.safetensors", "--against", "fora:interval=3",
        "--prompts", folder / "prompts.txt", "--samples", 1, "--repeats", 1, "--json",
    )  # fmt: skip
    rows = {row["name"]: row for row in json.loads(succeeds(result))["rows"]}
    assert {name: round(row["nfc"], 6) for name, row in rows.items()} == {
        "uncached": 12.0, "default": 5.0, "fora:interval=3": 4.0,
    }  # fmt: skip


def test_validate(cli: Cli, folder: Path) -> None:
    result = cli(
        "validate", folder / "model", "--policy", folder / "x.policy.safetensors",
        "--prompts", folder / "prompts.txt", "--samples", 1, "--json",
    )  # fmt: skip
    judged = json.loads(succeeds(result))["profiles"]["default"]
    assert (judged["nfc"], judged["holds"]) == (5.0, True)


def test_inspect_says_which_expert_is_called(cli: Cli, folder: Path) -> None:
    plan = json.loads(succeeds(cli("inspect", folder / "x.policy.safetensors", "--plan", "--json")))["plan"]
    called = {name: [row["units"][name] is not None for row in plan] for name in plan[0]["units"]}
    assert called == {"stack": [True] * 6 + [False] * 6, "transformer_2/stack": [False] * 6 + [True] * 6}
    assert plan[8]["units"]["transformer_2/stack"]["sources"] == [7, 6]
    shown = succeeds(cli("inspect", folder / "x.policy.safetensors"))
    assert "transformer_2" in shown


@pytest.mark.parametrize("command", ["run", "bench", "validate"])
def test_a_folder_without_the_second_expert_is_refused_before_weights_are_loaded(
    cli: Cli, folder: Path, tmp_path: Path, command: str
) -> None:
    """There are no weights that could be loaded."""
    shutil.copytree(folder / "model", tmp_path / "one", ignore=shutil.ignore_patterns("*.safetensors"))
    index = tmp_path / "one" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"transformer_2": [None, None]}))
    shutil.rmtree(tmp_path / "one" / "transformer_2")
    asked = ("--prompt", "red", "--out", tmp_path / "x.mp4") if command == "run" else ()
    more = ("--prompts", folder / "prompts.txt") if command != "run" else ()
    result = cli(command, tmp_path / "one", "--policy", folder / "x.policy.safetensors", *asked, *more)
    fails(result, "has no transformer_2")


def test_both_experts_are_exported_and_run(cli: Cli, folder: Path, tmp_path: Path) -> None:
    bundle, policy = tmp_path / "bundle", folder / "x.policy.safetensors"
    export = cli(
        "export", folder / "model", "--policy", policy, "--out", bundle, "--target", "onnxruntime",
        "--prompts", folder / "prompts.txt", "--json",
    )  # fmt: skip
    segments = json.loads(succeeds(export))["manifest"]["segments"]
    assert [each["name"] for each in segments] == ["blocks-000-002", "transformer_2.blocks-000-002"]
    bench = cli(
        "bench", folder / "model", "--policy", policy, "--bundle", bundle, "--prompts", folder / "prompts.txt",
        "--samples", 1, "--repeats", 1, "--json",
    )  # fmt: skip
    rows = {row["name"]: row for row in json.loads(succeeds(bench))["rows"]}
    assert round(rows["default"]["nfc"], 6) == 5.0 and rows["default"]["psnr"] > 0
    shown = succeeds(cli("inspect", bundle))
    assert "WanTransformer3DModel, 2 blocks, WanTransformer3DModel, 2 blocks" in shown
