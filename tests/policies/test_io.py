import json
import os
import stat
import tracemalloc
from pathlib import Path
from time import process_time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from cachesmith.policies import (
    PRESETS,
    Document,
    Fitted,
    Fixed,
    Forecaster,
    Interval,
    Policy,
    PolicyError,
    Profile,
    Subspace,
    canonical,
    content_id,
    decode,
    encode,
    load,
    preset,
    save,
)
from cachesmith.policies.file.container import MAX_FILE, MAX_HEADER, Contents, header_size, pack


def packed(policy: Policy, text: str) -> bytes:
    """A file with this document text, its id made to match."""
    return pack(Contents(text, content_id(text.encode(), policy.arrays), policy.arrays))


def headed(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def dumped(header: object, data: bytes = b"") -> bytes:
    return headed(json.dumps(header).encode(), data)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    policy = preset(name)
    save(policy, tmp_path / "x.policy.safetensors")
    loaded = load(tmp_path / "x.policy.safetensors")
    assert (loaded, loaded.id, loaded.document) == (policy, policy.id, policy.document)


def test_a_rich_policy_survives_a_round_trip(rich: Policy) -> None:
    loaded = decode(encode(rich))
    assert loaded.document == rich.document
    for name, array in rich.arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], array, strict=True)
        assert loaded.arrays[name].flags.writeable


@given(st.floats(min_value=0, allow_nan=False, allow_infinity=False))
def test_floats_are_exact(number: float) -> None:
    policy = Policy(Document(name="x", profiles={"default": Profile(gate=Interval(), nfc=number)}))
    assert decode(encode(policy)).profile().nfc == number


def test_equal_policies_give_equal_bytes(rich: Policy) -> None:
    turned = dict(reversed(rich.arrays.items()))
    strided = {name: np.asfortranarray(array) for name, array in turned.items()}
    assert encode(Policy(rich.document, strided)) == encode(rich) == encode(decode(encode(rich)))


def test_any_safetensors_reader_can_open_it(rich: Policy, tmp_path: Path) -> None:
    path = tmp_path / "x.policy.safetensors"
    save(rich, path)
    arrays = load_file(path)
    assert {name: a.tolist() for name, a in arrays.items()} == {n: a.tolist() for n, a in rich.arrays.items()}
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"cachesmith": canonical(rich.document).decode(), "policy_id": rich.id}


def test_defaults_are_written_out(rich: Policy) -> None:
    raw = json.loads(canonical(preset("fora").document))
    assert raw["profiles"]["default"]["gate"] == {"kind": "interval", "interval": 5, "warmup": 1, "tail": 0}
    assert raw["mismatch"]["steps"] == "remap"


@pytest.mark.parametrize("name", ["x.safetensors", "x", ".policy.safetensors", "x.policy.json"])
def test_suffix_is_required(name: str, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"must end in \.policy\.safetensors"):
        save(preset("fora"), tmp_path / name)


def test_save_replaces_or_leaves_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.policy.safetensors"
    save(preset("fora"), path)
    save(preset("rfc"), path)
    assert load(path) == preset("rfc")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(PolicyError, match="No space left on device"):
        save(preset("fora"), path)
    assert load(path) == preset("rfc")
    assert list(tmp_path.iterdir()) == [path]


def test_saved_files_follow_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "x.policy.safetensors"
    save(preset("fora"), path)
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_saving_checks_arrays_changed_since(rich: Policy) -> None:
    policy = decode(encode(rich))
    policy.arrays["modules/scales"][0] = np.nan
    with pytest.raises(PolicyError, match="NaN"):
        encode(policy)


def test_paths_that_cannot_be_used(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, message in {
        tmp_path / "none": "No such file",
        tmp_path: "not a regular file",
        tmp_path / "fifo": "not a regular file",
        Path("a\0b"): "check the path",
    }.items():
        with pytest.raises(PolicyError, match=message):
            load(path)
    with pytest.raises(PolicyError, match=r"cannot write .*No such file"):
        save(preset("fora"), tmp_path / "none" / "x.policy.safetensors")


def test_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(PolicyError, match=f"cannot read {tmp_path}/x: the file is empty"):
        load(tmp_path / "x")


def test_a_huge_header_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.write((100_000_000).to_bytes(8, "little"))
        file.truncate(200_000_000)
    with pytest.raises(PolicyError, match="the header takes 100,000,000 bytes"):
        load(tmp_path / "x")


def test_a_huge_file_is_refused_unread() -> None:
    with pytest.raises(PolicyError, match="the limit is"):
        header_size(b"\0" * 8, MAX_FILE + 1)


def test_profiles_are_listed_from_dear_to_cheap() -> None:
    counts = {"fast": 7.0, "unknown": None, "quality": 14.0, "balanced": 10.0}
    profiles = {
        name: preset("fora", interval=5).profile().model_copy(update={"nfc": n}) for name, n in counts.items()
    }
    document = Document(name="several", profiles=profiles)
    assert [*document.profiles] == ["quality", "balanced", "fast", "unknown"]
    assert [*decode(encode(Policy(document, {}))).document.profiles] == [*document.profiles]


def test_every_truncation_is_refused(rich: Policy) -> None:
    data = encode(rich)
    for size in [*range(64), *range(64, len(data), 97)]:
        with pytest.raises(PolicyError):
            decode(data[:size])
    with pytest.raises(PolicyError, match="damaged"):
        decode(data + b"\0")


META = {"cachesmith": "{}", "policy_id": ""}


@pytest.mark.parametrize(
    ("data", "message"),
    {
        "not JSON": (headed(b"xx"), "header of the file is not valid JSON"),
        "not UTF-8": (headed(b'{"\xff": 1}'), "header of the file is not valid JSON"),
        "a list": (headed(b"[]"), "JSON list, expected an object"),
        "no metadata": (headed(b"{}"), "no 'cachesmith' and 'policy_id'"),
        "metadata a list": (dumped({"__metadata__": []}), "no 'cachesmith' and 'policy_id'"),
        "other metadata": (dumped({"__metadata__": {**META, "more": ""}}), "holds 'more'"),
        "metadata no text": (dumped({"__metadata__": {**META, "policy_id": 1}}), "must be ASCII text"),
        "surrogate": (dumped({"__metadata__": {**META, "policy_id": "\ud800"}}), "must be ASCII text"),
        "repeated": (headed(b'{"a": 1, "a": 2}'), "'a' is given twice"),
        "nested": (headed(b'{"a":' + b"[" * 200_000), "nested too deeply"),
        "huge integer": (headed(b'{"a": ' + b"9" * 5000 + b"}"), "not valid JSON"),
        "huge number": (headed(b'{"a": 1e999}'), "too large"),
        "NaN": (headed(b'{"a": NaN}'), "NaN is not a number"),
    }.values(),
)
def test_damaged_headers(data: bytes, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        decode(data)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("../x", {}, "array name '../x' is not allowed"),
        ("/etc/passwd", {}, "is not allowed"),
        ("a//b", {}, "is not allowed"),
        ("a\n", {}, "is not allowed"),
        ("a" * 121, {}, "is not allowed"),
        ("x", {"dtype": "F16"}, "dtype 'F16'; a policy stores only F32 and I32"),
        ("x", {"dtype": None}, "stores only F32 and I32"),
        ("x", {"shape": [2]}, r"of shape \[2\] needs 8 bytes, has 4"),
        ("x", {"shape": [-1]}, "no list of sizes"),
        ("x", {"shape": [True]}, "no list of sizes"),
        ("x", {"shape": [2**64]}, "no list of sizes"),
        ("x", {"shape": "1"}, "no list of sizes"),
        ("x", {"data_offsets": [0]}, "lies at"),
        ("x", {"data_offsets": [4, 0]}, "lies at"),
        ("x", {"data_offsets": [0, 5]}, r"lies at \[0, 5\] of 4 bytes"),
        ("x", {"extra": 1}, "needs dtype, shape and data_offsets"),
    ],
)
def test_damaged_array_entries(name: str, changes: dict[str, object], message: str) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}
    with pytest.raises(PolicyError, match=message):
        decode(dumped({"__metadata__": META, name: entry}, b"\0" * 4))


def test_overlapping_arrays_are_refused() -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    with pytest.raises(PolicyError, match="array 'b' begins at byte 0, the one before ends at 4"):
        decode(dumped({"__metadata__": META, "a": entry, "b": entry}, b"\0" * 4))


def test_changes_after_saving_are_noticed(rich: Policy) -> None:
    data = encode(rich)
    for old, new in {
        b'\\"order\\":2': b'\\"order\\":3',
        data[-4:]: b"\0\0\0\1",
        rich.id.encode(): b"0" * 16,
    }.items():
        with pytest.raises(PolicyError, match="modified after it was saved"):
            decode(new.join(data.rsplit(old, 1)))


def test_invalid_fields_are_named_with_value_and_limit(rich: Policy) -> None:
    raw = json.loads(canonical(rich.document))
    raw["profiles"]["fast"]["gate"]["interval"] = -3
    raw["profiles"]["fast"]["gate"]["intervall"] = 3
    with pytest.raises(PolicyError) as caught:
        decode(packed(rich, json.dumps(raw)))
    assert "profiles.fast.gate.interval.interval = -3: input should be greater than or equal to 1" in str(
        caught.value
    )
    assert "profiles.fast.gate.interval.intervall = 3: extra inputs are not permitted" in str(caught.value)


def test_many_faults_are_told_quickly_and_shortly(rich: Policy) -> None:
    raw = json.loads(canonical(rich.document))
    raw["sampler"]["sigmas"] = [-1.0] * 40_000
    with pytest.raises(PolicyError, match=r"sampler.sigmas.0 = -1.0: .*; and 39997 more$"):
        decode(packed(rich, json.dumps(raw)))


def test_unknown_format_is_named(rich: Policy) -> None:
    raw = json.loads(canonical(rich.document))
    for found in (2, 0, None, "1", True, 1.0):
        raw["format"] = found
        with pytest.raises(PolicyError, match=f"has format '{found}', this cachesmith reads 1;"):
            decode(packed(rich, json.dumps(raw)))


def test_deeply_nested_documents_are_refused(rich: Policy) -> None:
    for depth in (100, 300, 900, 1100, 100_000):
        text = '{"format":1,"name":' + "[" * depth + "]" * depth + "}"
        with pytest.raises(PolicyError):
            decode(packed(rich, text))


def test_only_the_written_form_is_read(rich: Policy) -> None:
    text = json.dumps(json.loads(canonical(rich.document)), indent=1)
    with pytest.raises(PolicyError, match="not in the form cachesmith writes"):
        decode(packed(rich, text))


def test_a_header_beyond_the_limit_is_not_written() -> None:
    with pytest.raises(PolicyError, match="the header takes"):
        pack(Contents("x" * MAX_HEADER, "", {}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n",
            "git-lfs pointer.*git lfs pull",
        ),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>404</html>", "it is a web page"),
        (b'{"cache": 1, "more": 2}', "it is JSON text; .*cachesmith convert"),
        (b"PK\x03\x04" + b"x" * 99, "zip archive or a torch checkpoint"),
        (b"\x1f\x8b\x08\x00" + b"x" * 99, "it is compressed"),
        (b"", "the file is empty"),
    ],
)
def test_what_was_copied_in_place_of_a_policy(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(PolicyError, match=message):
        load(tmp_path / "x")


def test_a_text_of_too_many_values(rich: Policy) -> None:
    raw = json.loads(canonical(rich.document))
    with pytest.raises(PolicyError, match=r"holds about 60,\d+ values, the limit is 50,000"):
        decode(packed(rich, json.dumps({**raw, "more": [0] * 60_000})))


def test_arrays_are_judged_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2**28
    entry = {"dtype": "F32", "shape": [size // 400, 100], "data_offsets": [0, size // 400 * 400]}
    with (tmp_path / "x").open("wb") as file:
        file.write(dumped({"__metadata__": META, "s": entry}))
        file.truncate(file.tell() + size // 400 * 400)
    monkeypatch.setattr("cachesmith.policies.file.io.unpack", None)
    with pytest.raises(PolicyError, match=r"has shape \[671088, 100\], the limit along an axis is 65,536"):
        load(tmp_path / "x")


def test_a_file_is_held_once(tmp_path: Path) -> None:
    """64 MiB of weights: reading them takes not much more."""
    weights = np.ones((64, 64, 64, 64), np.float32)
    ids = np.zeros((64, 64), np.int32)
    profile = Profile(gate=Fixed(mask="C" * 64), forecaster=Forecaster(rows=Fitted(weights="w", ids="i")))
    save(
        Policy(Document(name="x", profiles={"default": profile}), {"w": weights, "i": ids}),
        tmp_path / "x.policy.safetensors",
    )
    tracemalloc.start()
    policy = load(tmp_path / "x.policy.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert weights.nbytes < peak < 1.5 * weights.nbytes
    assert policy.arrays["w"].flags.writeable


def test_a_large_basis_is_checked_in_no_time() -> None:
    """All of V^T V would be 137 billion products."""
    basis = np.eye(4096, dtype=np.float32)[None]
    profile = Profile(gate=Interval(), forecaster=Forecaster(subspace=Subspace(basis="b")))
    document = Document(name="x", profiles={"default": profile})
    begun = process_time()
    Policy(document, {"b": basis})
    assert process_time() - begun < 1
    for place in ((0, 5, 5), (0, 7, 4000)):
        wrong = basis.copy()
        wrong[place] += 0.01
        with pytest.raises(PolicyError, match=r"off orthonormal by 0\.0"):
            Policy(document, {"b": wrong})


@pytest.mark.parametrize("path", ["x" * 5000, "x" * 5000 + ".policy.safetensors", "a\0b"])
def test_a_path_that_no_file_can_have_is_refused(path: str) -> None:
    with pytest.raises(PolicyError, match="cannot read"):
        load(path)
