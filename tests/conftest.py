"""Fixtures that several folders use."""

from collections.abc import Iterator

import pytest
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

pytest_plugins = ["tests.shipped"]


@pytest.fixture
def process_backend() -> Iterator[None]:
    """diffusers sets an attention backend for the whole process: it is put back."""
    before = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry.set_active_backend(before)
