"""Values that the shell completes: read from files and tables, never from a model, so that TAB answers at once."""

from collections.abc import Iterator
from pathlib import Path

import typer

from cachesmith.policies import PRESETS, SUFFIX, load
from cachesmith.policies.bundle.manifest import MANIFEST
from cachesmith.policies.convert import SOURCES, TARGETS
from cachesmith.sampling.metrics import METRICS

METHOD_NAMES = (
    "budcache",
    "dpcache",
    "eoc",
    "golden-path",
    "hyca",
    "l2p",
    "magcache",
    "scalingcache",
    "sglang-dpcache",
    "smoothcache",
    "svd-cache",
    "teacache",
)
"""Those of `cachesmith.calibrate.methods`, whose import takes seconds; a test compares."""


def policy_files(incomplete: str) -> list[str]:
    """Policy files, and folders that may hold some."""
    return [_shown(p) for p in _entries(incomplete) if p.is_dir() or p.name.endswith(SUFFIX)]


def folders(incomplete: str) -> list[str]:
    """Folders: those that are pipelines or bundles end there."""
    return [_shown(p) for p in _entries(incomplete) if p.is_dir()]


def profiles(context: typer.Context, incomplete: str) -> list[str]:
    """Profiles of the policy that the line names."""
    # of `inspect X --profile`, X is still unread
    unread = (text for text in context.args if text.endswith(SUFFIX))
    policy = context.params.get("policy") or context.params.get("file") or next(unread, None)
    try:
        names = list(load(Path(policy)).document.profiles) if policy else []
    except Exception:  # a shell cannot show what is wrong with a file: the command itself will
        names = []
    return _starting(names, incomplete)


def presets(incomplete: str) -> list[str]:
    """Published methods, of which the last is being written."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in _starting(PRESETS, last)]


def methods(incomplete: str) -> list[str]:
    """Methods that `cachesmith fit` fits."""
    return _starting(METHOD_NAMES, incomplete)


def metrics(incomplete: str) -> list[str]:
    """What schedules may be compared by."""
    return _starting(METRICS, incomplete)


def source_formats(incomplete: str) -> list[str]:
    """Formats that are read."""
    return _starting(SOURCES, incomplete)


def target_formats(incomplete: str) -> list[str]:
    """Formats that are written."""
    return _starting(TARGETS, incomplete)


def devices(incomplete: str) -> list[str]:
    """Names that torch knows."""
    return _starting(("cpu", "cuda", "cuda:0", "cuda:1", "mps", "xpu"), incomplete)


def _starting(names: object, incomplete: str) -> list[str]:
    return [str(name) for name in names if str(name).startswith(incomplete)]  # type: ignore[attr-defined]


def _entries(incomplete: str) -> Iterator[Path]:
    folder, _, start = incomplete.rpartition("/")
    where = Path(f"{folder}/" if "/" in incomplete else ".").expanduser()
    if not where.is_dir():
        return
    for path in sorted(where.iterdir()):
        if path.name.startswith(start) and (start.startswith(".") or not path.name.startswith(".")):
            yield path


def _shown(path: Path) -> str:
    ends_here = not path.is_dir() or any((path / name).is_file() for name in (MANIFEST, "model_index.json"))
    return str(path) if ends_here else f"{path}/"
