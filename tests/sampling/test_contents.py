"""Digests of requests: of what they hold, never of where it lies or how it prints."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cachesmith.policies import CachesmithError, PolicyError
from cachesmith.sampling.requests import Request, derived_seed, heldout_part, requests, requests_digest, split


def of(**arguments: Any) -> str:
    return requests_digest([Request(arguments, 0)])


def test_plain_arguments_have_the_digest_that_files_keep() -> None:
    items = [
        Request({"prompt": "é", "height": 32, "guidance_scale": 1.5}, 3),
        Request({"class_labels": 1}, 4),
    ]
    text = json.dumps([item.arguments for item in items], sort_keys=True)
    assert requests_digest(items) == hashlib.sha256(text.encode()).hexdigest()


def test_one_element_of_a_large_tensor_counts() -> None:
    """The print of a tensor leaves out its middle."""
    a, b = torch.zeros(1, 4096, 8), torch.zeros(1, 4096, 8)
    b[0, 2000, 4] = 1e-7
    assert str(a) == str(b) and of(x=a) != of(x=b) and of(x=a) == of(x=a.clone())
    assert len({of(x=a), of(x=a.half()), of(x=a[0]), of(x=a.numpy())}) == 4


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.int64, torch.complex64]
)
def test_every_dtype_and_layout_has_contents(dtype: torch.dtype) -> None:
    a = torch.arange(6).reshape(2, 3).to(dtype)
    assert of(x=a.T) == of(x=a.T.contiguous()) != of(x=a)
    assert of(x=a[0, 0]) == of(x=a[0, 0].clone())


def test_pictures_count_by_their_pixels(tmp_path: Path) -> None:
    red, other = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "red")
    assert of(image=red) == of(image=other)
    other.putpixel((7, 7), (254, 0, 0))
    assert of(image=red) != of(image=other)
    red.save(tmp_path / "a.png")
    red.save(tmp_path / "b.bmp")
    paths = [requests([{"image": tmp_path / name}], 1, 0)[0] for name in ("a.png", "b.bmp")]
    assert requests_digest(paths[:1]) == requests_digest(paths[1:]) == of(image=red)
    assert paths[0] == paths[1] and "0x" not in repr(paths)


def test_what_has_no_contents_is_refused() -> None:
    with pytest.raises(CachesmithError, match="contents of a object cannot be told"):
        of(x=object())
    with pytest.raises(CachesmithError, match="contents of a function"):
        of(x=[lambda: None])
    assert of(x=np.float32(1)) != of(x=np.float64(1))


def test_embeddings_are_held_out_as_texts_are() -> None:
    prompts: list[Any] = [{"prompt_embeds": torch.full((1, 300, 40), float(i) / 7)} for i in range(30)]
    parts = split([*prompts, *prompts[:5]], 8, 4, 4, 0)
    every = [*parts.fitting, *parts.validation, *parts.heldout]
    assert len({requests_digest([r]) for r in every}) == 16
    from tests.calibrate.small import recorded

    record = recorded(parts).document.calibration
    assert requests(heldout_part(prompts, record), 4, 200_000) == parts.heldout


@pytest.mark.parametrize("seed", [0, 20250101, 2**32 + 1, 2**63, 2**64 - 1])
def test_seeds_of_64_bits_split_and_derive(seed: int) -> None:
    parts = split([f"prompt {i}" for i in range(30)], 8, 4, 4, seed)
    seeds = [r.seed for r in (*parts.fitting, *parts.validation, *parts.heldout)]
    assert len(set(seeds)) == 16
    for number in seeds:
        torch.Generator().manual_seed(number)
    np.random.RandomState(derived_seed(seed, 3))
    assert derived_seed(seed, 3) != derived_seed(seed, 4)


def test_small_seeds_stay_what_they_were() -> None:
    assert derived_seed(5, 7) == 5 * 10_007 + 7
    assert split(["a", "b"], 2, 2, 2, 3).heldout[0].seed == 3_200_000


@pytest.mark.parametrize("first", [-(2**63) - 1, 2**64 - 1])
def test_larger_seeds_are_refused(first: int) -> None:
    with pytest.raises(PolicyError, match="64-bit"):
        requests(["a"], 2, first)
