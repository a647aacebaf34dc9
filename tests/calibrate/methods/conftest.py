import pytest
from tests.tiny import tiny_dit

from cachesmith.sampling.render import Renderer


@pytest.fixture(scope="module")
def renderer(request: pytest.FixtureRequest) -> Renderer:
    """Samples a tiny DiT in the module's `STEPS`."""
    return Renderer(tiny_dit(), request.module.STEPS, batch=2, guidance_scale=1.5)
