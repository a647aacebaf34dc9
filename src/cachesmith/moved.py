"""Old module names keep working for a release, with a warning that names the new one."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

MOVED = {
    "cachesmith.calibrate.metrics": "cachesmith.sampling.metrics",
    "cachesmith.calibrate.prompts": "cachesmith.sampling.requests",
    "cachesmith.calibrate.render": "cachesmith.sampling.render",
    "cachesmith.policies.container": "cachesmith.policies.file.container",
    "cachesmith.runtime.adapters": "cachesmith.runtime.models.adapters",
    "cachesmith.runtime.clock": "cachesmith.runtime.hooks.clock",
    "cachesmith.runtime.fingerprint": "cachesmith.runtime.models.fingerprint",
    "cachesmith.runtime.units": "cachesmith.runtime.models.units",
}
"""Old name -> new name."""


class _Moved(MetaPathFinder, Loader):
    """Imports the new module under the old name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_loader(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = MOVED[spec.name]
        warnings.warn(
            f"{spec.name} is {new} now; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        module = importlib.import_module(new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # importing has put the old name's spec on the new module
        module.__spec__ = self._spec


def install() -> None:
    """Have imports of old names found. Once a process."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
