"""The modules of examples/serve, which are no package: they are found as `python server.py` finds them."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "serve"


def module(name: str) -> Any:
    """Import one of the example's modules."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return import_module(name)
