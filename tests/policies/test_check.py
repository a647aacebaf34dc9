import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from cachesmith.policies import Document, Policy, PolicyError
from cachesmith.policies import check as checks


def ones(*shape: int, dtype: str = "float32") -> NDArray[Any]:
    return np.ones(shape, dtype=dtype)


ARRAYS: dict[str, tuple[str, NDArray[Any], str]] = {
    "dtype": ("fast/weights", ones(4, 8, 3, dtype="float64"), "has dtype float64, expected float32"),
    "byte order": ("fast/weights", ones(4, 8, 3, dtype=">f4"), "has dtype >f4, expected float32"),
    "ids dtype": ("balanced/ids", ones(4, 6), "has dtype float32, expected int32"),
    "object dtype": ("balanced/ids", ones(4, 6, dtype="O"), "has dtype object, expected int32"),
    "axes": ("fast/weights", ones(4, 8), r"has shape \(4, 8\), expected \[lanes, steps, taps\]"),
    "no axes": ("balanced/scales", ones(), r"has shape \(\), expected \[lanes, time bins\]"),
    "empty": ("balanced/scales", ones(4, 0), r"has shape \(4, 0\)"),
    "nan": ("modules/scales", ones(10, 1) * np.nan, "NaN or infinite"),
    "infinite": ("fast/weights", ones(4, 8, 3) * np.inf, "NaN or infinite"),
    "negative scale": ("balanced/scales", -ones(4, 3), "at least 0"),
    "ids too high": (
        "balanced/ids",
        ones(4, 6, dtype="int32") * 5,
        "holds 5 to 5 for 5 clusters; use 0 to 4",
    ),
    "ids negative": ("balanced/ids", -ones(4, 6, dtype="int32"), "holds -1 to -1"),
    "ids channels": ("balanced/ids", ones(4, 7, dtype="int32"), "ids for 7 channels and a basis for 6"),
    "rank": ("balanced/basis", ones(4, 6, 7), "rank 7 for 6 channels; use a rank of at most 6"),
    "orthonormal": ("balanced/basis", ones(4, 6, 2), "off orthonormal by 1"),
    "overflow": ("balanced/basis", ones(4, 6, 2) * np.float32(3e38), "off orthonormal"),
    "steps": ("fast/weights", ones(4, 9, 3), "rows for 9 steps, expected 8"),
    "input steps": ("fast/input_weights", ones(4, 7, 4), "rows for 7 steps, expected 8"),
    "input taps": ("fast/input_weights", ones(4, 8, 3), "has 3 taps, expected 4"),
    "lanes differ": ("fast/input_weights", ones(8, 8, 4), "has 4 lanes and .*input_weights has 8"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_wrong_array_is_named(rich: Policy, case: str) -> None:
    name, array, message = ARRAYS[case]
    with pytest.raises(PolicyError, match=message):
        Policy(rich.document, {**rich.arrays, name: array})


def test_segments_have_a_lane_or_more(rich: Policy) -> None:
    """Not the same number each: only the streams that are still read leave the last segment."""
    more = {
        name: np.concatenate([array, array[:1]]) if name.startswith("fast/") else array
        for name, array in rich.arrays.items()
    }
    Policy(rich.document, more)
    fewer = {name: array[:3] if name.startswith("fast/") else array for name, array in rich.arrays.items()}
    with pytest.raises(PolicyError, match="3 lanes for 4 segments"):
        Policy(rich.document, fewer)


def test_missing_array_is_named(rich: Policy) -> None:
    for name in rich.arrays:
        rest = {key: array for key, array in rich.arrays.items() if key != name}
        with pytest.raises(PolicyError, match=f"'{name}', which is not stored"):
            Policy(rich.document, rest)


def test_unused_array_is_named(rich: Policy) -> None:
    with pytest.raises(PolicyError, match="'spare' is stored but no field names it"):
        Policy(rich.document, {**rich.arrays, "spare": ones(1)})


def test_size_limit(rich: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MAX_BYTES", 100)
    with pytest.raises(PolicyError, match="the limit is 100"):
        Policy(rich.document, rich.arrays)


FIELDS: dict[str, tuple[tuple[str, ...], object, str]] = {
    "mask": (("profiles", "balanced", "gate", "mask"), "CCF", "gate.mask has 3 letters for 8 steps"),
    "group": (("profiles", "balanced", "gate", "groups", "a"), "CF", "groups.a has 2 letters for 8 steps"),
    "sigmas": (("sampler", "sigmas"), [1.0], "has 1 values but sampler.steps is 8"),
    "starts": (("model", "blocks"), 9, "ends with block 9 but the model has 9 blocks"),
    "shared name": (
        ("profiles", "balanced", "forecaster", "rows", "ids"),
        "fast/weights",
        "stored but no field names it",
    ),
}


class Counted(np.ndarray[Any, Any]):
    """Counts how often all its values are read for their least."""

    reads = 0

    def min(self, *args: Any, **kwargs: Any) -> Any:
        type(self).reads += 1
        return super().min(*args, **kwargs)


@pytest.mark.parametrize("name", ["balanced/ids", "balanced/scales"])
def test_an_array_named_often_is_read_once(rich: Policy, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counted, "reads", 0)
    forecaster = json.loads(rich.profile("balanced").forecaster.model_dump_json())
    overrides = {f"segment.{place}": forecaster for place in range(100)}
    document = edited(rich.document, ("profiles", "balanced", "overrides"), overrides)
    Policy(document, {**rich.arrays, name: rich.arrays[name].view(Counted)})
    assert Counted.reads == 1


@pytest.mark.parametrize(
    ("field", "value"), [(("overrides",), {}), (("gate", "groups"), "CFFFFFFC")], ids=["overrides", "groups"]
)
def test_there_are_no_more_groups_than_segments(rich: Policy, field: tuple[str, ...], value: object) -> None:
    path = ("profiles", "balanced", *field)
    edited(rich.document, path, {f"segment.{place}": value for place in range(1000)})
    with pytest.raises(ValidationError, match="at most 1000 items"):
        edited(rich.document, path, {f"segment.{place}": value for place in range(1001)})


def edited(document: Document, path: tuple[str, ...], value: object) -> Document:
    raw = document.model_dump(mode="json")
    inner = raw
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return Document.model_validate_json(json.dumps(raw))


@pytest.mark.parametrize("case", FIELDS)
def test_inconsistent_fields_are_named(rich: Policy, case: str) -> None:
    path, value, message = FIELDS[case]
    document = edited(rich.document, path, value)
    with pytest.raises(PolicyError, match=message):
        Policy(document, rich.arrays)


def test_a_calibration_has_used_a_seed(rich: Policy) -> None:
    heldout = edited(rich.document, ("calibration", "fitting_seeds"), [])
    assert heldout.calibration is not None and heldout.calibration.unseen_seed == 8
    with pytest.raises(ValidationError, match="at least one of fitting_seeds and heldout_seeds"):
        edited(heldout, ("calibration", "heldout_seeds"), [])


TEXTS = (
    ("model", "transformer"), ("model", "adapters"), ("sampler", "scheduler"), ("calibration", "fitted"),
)  # fmt: skip


@pytest.mark.parametrize("path", TEXTS, ids=".".join)
@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "a\x7f", "\x9b2J", "\u202eevil", "a\u2028b", "\0"])
def test_no_text_is_an_instruction_to_a_terminal(rich: Policy, path: tuple[str, str], text: str) -> None:
    value = [text] if path[1] in ("adapters", "fitted") else text
    with pytest.raises(ValidationError, match="control or format characters"):
        edited(rich.document, path, value)


@pytest.mark.parametrize("text", ["", "Stil: Öl auf Leinwand", "水墨　画", "a\xa0b", "😀"])
def test_text_is_of_any_script(rich: Policy, text: str) -> None:
    model = edited(rich.document, ("model", "adapters"), [text]).model
    assert model is not None and model.adapters == (text,)


def test_without_a_sampler_groups_still_match_the_mask(rich: Policy) -> None:
    unbound = edited(rich.document, ("sampler",), None)
    assert Policy(unbound, rich.arrays).profile("balanced") == rich.profile("balanced")
    with pytest.raises(PolicyError, match=r"groups\.a has 2 letters for 8 steps"):
        Policy(edited(unbound, FIELDS["group"][0], "CF"), rich.arrays)


def test_profile_lookup(rich: Policy) -> None:
    assert rich.profile() is rich.document.profiles["balanced"]
    assert rich.profile("fast") is rich.document.profiles["fast"]
    with pytest.raises(PolicyError, match="no profile 'slow'; choose from quality, balanced, fast"):
        rich.profile("slow")


LATER: dict[str, tuple[NDArray[Any], str]] = {
    "dtype": (ones(2, 8, 6, dtype="float64"), "has dtype float64, expected float32"),
    "axes": (ones(8, 6), r"has shape \(8, 6\), expected \[lanes, steps, channels\]"),
    "empty": (ones(2, 8, 0), "none of them 0"),
    "nan": (ones(2, 8, 6) * np.nan, "NaN or infinite"),
    "steps": (ones(2, 7, 6), "correction.offsets has rows for 7 steps, expected 8"),
}


@pytest.mark.parametrize("case", LATER)
def test_wrong_offsets_are_named(grown: Policy, case: str) -> None:
    array, message = LATER[case]
    with pytest.raises(PolicyError, match=message):
        Policy(grown.document, {**grown.arrays, "later/offsets": array})


def test_a_correction_has_the_channels_of_the_other_arrays(grown: Policy) -> None:
    path = ("profiles", "balanced", "forecaster", "correction")
    document = edited(grown.document, path, {"offsets": "balanced/offsets"})
    with pytest.raises(PolicyError, match="a basis for 6 channels and a correction for 7"):
        Policy(document, {**grown.arrays, "balanced/offsets": ones(4, 8, 7)})
    Policy(document, {**grown.arrays, "balanced/offsets": ones(4, 8, 6)})


def test_parts_that_are_not_used_are_not_written(rich: Policy) -> None:
    text = rich.document.model_dump_json()
    assert '"band"' not in text and '"correction"' not in text
