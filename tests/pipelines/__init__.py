"""Tiny pipelines of the architectures that users run, with random weights, and what holds for all of them."""

from tests.pipelines.audio import AUDIO
from tests.pipelines.flux import FLUX
from tests.pipelines.guided import GUIDED
from tests.pipelines.image import IMAGE
from tests.pipelines.latest import LATEST
from tests.pipelines.latest_video import LATEST_VIDEO
from tests.pipelines.ltx2 import LTX2
from tests.pipelines.newer import NEWER
from tests.pipelines.parts import TinyPipeline
from tests.pipelines.video import VIDEO
from tests.pipelines.wan import WAN

__all__ = ["PIPELINES", "TinyPipeline"]

PIPELINES: dict[str, TinyPipeline] = (
    FLUX | IMAGE | WAN | VIDEO | LTX2 | AUDIO | GUIDED | NEWER | LATEST | LATEST_VIDEO
)
