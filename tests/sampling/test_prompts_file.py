"""Files of prompts: read strictly, faults told by line number, with a remedy."""

import gc
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cachesmith.policies import PolicyError
from cachesmith.sampling.requests import File, read_prompts, requests


def read(folder: Path, text: str | bytes, name: str = "p.txt") -> list[Any]:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_prompts(path)


def test_a_byte_order_mark_is_no_letter(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeffa red bicycle\r\na cat\r\n") == ["a red bicycle", "a cat"]
    assert read(tmp_path, '\ufeff{"class_labels": 1}\n', "p.jsonl") == [{"class_labels": 1}]


@pytest.mark.parametrize("letter", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_line_feeds_end_lines(tmp_path: Path, letter: str) -> None:
    """JSON may hold the Unicode separators as they are, and so may prose."""
    assert read(tmp_path, f"one{letter}two\nthree\rfour") == [f"one{letter}two", "three", "four"]
    if letter > "\x20":
        row = json.dumps({"prompt": f"one{letter}two"}, ensure_ascii=False)
        assert read(tmp_path, row, "p.jsonl") == [{"prompt": f"one{letter}two"}]


@pytest.mark.parametrize(
    "text", ["{red|blue} bicycle", "{2$$a|b}", "{0.5::red|blue} hat", "[cat:dog:0.5]", "{{x}}", "5", "null"]
)
def test_braces_are_letters_of_a_text(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, f"a cat\n{text}") == ["a cat", text]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "c",}', "double quotes at column 16"),
        ("{'prompt': 'c'}", "double quotes"),
        ('{prompt: "c"}', "double quotes"),
        ("{", '{"prompt": "..."}'),
        ('{"prompt": "a", "prompt": "b"}', "'prompt' is given twice"),
        ('{"guidance_scale": NaN}', "NaN is no number"),
        ('{"guidance_scale": -Infinity}', "-Infinity is no number"),
        ('{"guidance_scale": 1e999}', "write a finite one"),
        ('{"prompt": "a \\ud83d b"}', "surrogate"),
        ('{"a": ' + "[" * 100_000, "p.txt, line 3"),
        ('{"height": ' + "9" * 5000 + "}", "p.txt, line 3"),
        ('{"image": "none.png"}', "there is no file"),
        ('{"prompt_embeds": "none.pt"}', "safetensors.torch.save_file"),
        ('{"image": "../p.pkl"}', "safetensors.torch.save_file"),
    ],
)
def test_faults_are_told_by_line(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(PolicyError, match=r"p\.txt, line 3") as told:
        read(tmp_path, f"a\n\n{line}\nb")
    assert said in str(told.value) and "line 1 " not in str(told.value) and len(str(told.value)) < 500


@pytest.mark.parametrize("line", ["{red|blue} bicycle", "[1, 2]", '["a"]'])
def test_json_lines_are_objects(tmp_path: Path, line: str) -> None:
    with pytest.raises(PolicyError, match="line 2") as told:
        read(tmp_path, f'{{"prompt": "a"}}\n{line}', "p.jsonl")
    assert "write a JSON object" in str(told.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "holds no prompts"),
        (b"\n \n", "holds no prompts"),
        (b"a\n\xff\xfe\nb", "line 2: it is no UTF-8"),
        ("a cat".encode("utf-16"), "it is UTF-16; save it as UTF-8"),
    ],
)
def test_files_that_are_no_lists(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        read(tmp_path, data)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(PolicyError, match="cannot read prompts from"):
            read_prompts(path)


def test_files_are_found_beside_the_list(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    Image.new("L", (8, 4), 100).save(tmp_path / "media" / "a.png")
    np.save(tmp_path / "media" / "a.npy", np.ones((1, 2, 3), np.float32))
    tensors = {"prompt_embeds": torch.full((1, 2), 2.0, dtype=torch.bfloat16), "other": torch.zeros(1)}
    save_file(tensors, tmp_path / "media" / "t.safetensors")
    row = {
        "image": "media/a.png", "latents": "media/a.npy", "prompt_embeds": "media/t.safetensors",
        "negative_prompt_embeds": "media/t.safetensors#other", "prompt": "a photo, cat.png",
        "images": ["media/a.png", "media/a.png"],
    }  # fmt: skip
    (request,) = requests(read(tmp_path, json.dumps(row), "p.jsonl"), 1, 0)
    assert isinstance(request.arguments["image"], File)
    loaded = request.loaded()
    assert (loaded["image"].size, loaded["image"].mode, loaded["prompt"]) == (
        (8, 4),
        "RGB",
        "a photo, cat.png",
    )
    assert loaded["latents"].shape == (1, 2, 3) and len(loaded["images"]) == 2
    assert torch.equal(loaded["prompt_embeds"], tensors["prompt_embeds"])
    assert torch.equal(loaded["negative_prompt_embeds"], tensors["other"])


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.png", b"no picture", "cannot read"),
        ("x.npy", b"\x93NUMPY", "cannot read"),
        ("x.safetensors", b"12345678{}", "cannot read"),
    ],
)
def test_files_are_read_before_anything_is_sampled(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PolicyError, match=said) as told:
        read(tmp_path, json.dumps({"image": name}), "p.jsonl")
    assert "line 1: 'image'" in str(told.value) and name in str(told.value)


def test_a_damaged_video(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # imageio leaves a file open
        with pytest.raises(PolicyError, match="line 1: 'video': cannot read"):
            read(tmp_path, '{"video": "x.mp4"}')
        gc.collect()


def test_pickles_in_arrays_are_not_run(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(PolicyError, match=r"cannot read .*x\.npy"):
        read(tmp_path, '{"latents": "x.npy"}')


def test_a_file_with_several_tensors_asks_for_a_name(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "t.safetensors")
    with pytest.raises(PolicyError, match=r"holds no tensor 'latents' but a, b; write t\.safetensors#NAME"):
        read(tmp_path, '{"latents": "t.safetensors"}')
