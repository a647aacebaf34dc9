"""What every value in a policy document shares."""

import unicodedata
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
)
from pydantic_core import PydanticCustomError


class Frozen(BaseModel):
    """An immutable value that refuses unknown fields, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Grown(Frozen):
    """A value that got fields after files were written with it: `LATER` are written only where they say something, so
    that older files keep their bytes and ids."""

    LATER: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        same = [n for n in self.LATER if getattr(self, n) == fields[n].get_default(call_default_factory=True)]
        return {name: value for name, value in written.items() if name not in same}


UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Categories of Unicode."""

Arrays = dict[str, NDArray[np.generic]]
"""What is stored beside the document, by name."""


def refuse_unprintable(text: str) -> str:
    """Return `text`; raise `PydanticCustomError` if a terminal would obey some of it."""
    if any(unicodedata.category(letter) in UNPRINTABLE for letter in text):
        raise PydanticCustomError("text", "it holds control or format characters; write it without them")
    return text


NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$"
TENSOR_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*){0,3}$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""A profile or group name: no slashes, no leading dot, at most 80 characters."""

TensorName = Annotated[str, StringConstraints(pattern=TENSOR_PATTERN, max_length=120)]
"""The name of an array stored beside the document, such as `balanced/weights`."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(max_length=400), AfterValidator(refuse_unprintable)]
"""One line of letters of any script: no control or format characters, which a terminal would obey."""

Mask = Annotated[str, StringConstraints(pattern=r"^-*C[CF]*-*$", max_length=10_000)]
"""One letter a step: C computed, F forecast. The first step has nothing to be forecast from.

Steps before and after, at which another of the pipeline's denoisers is called, are -."""

HalfMask = Annotated[str, StringConstraints(pattern=r"^-*C[CFH]*-*$", max_length=10_000)]
"""As `Mask`, with one letter more, H: half of it is computed, that half of guidance which the other follows."""

Threshold = Annotated[float, Field(ge=0, le=1e6)]
MAX_GROUPS = 1000
"""Unit groups that a profile may treat on their own: as many as it may have segments."""

MAIN = "transformer"
"""The name of a pipeline's main denoiser."""

MAX_DENOISERS = 16
"""Denoisers of a pipeline: none has more than two."""

Count = Annotated[int, Field(ge=0, le=10_000)]
"""A number of steps."""
