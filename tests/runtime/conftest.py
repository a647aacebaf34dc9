"""A fresh tiny pipeline for every test."""

import pytest
from tests.tiny import Pipeline, tiny_dit, tiny_flux


@pytest.fixture
def dit() -> Pipeline:
    return tiny_dit()


@pytest.fixture
def flux() -> Pipeline:
    return tiny_flux()
