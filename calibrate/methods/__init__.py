"""Published methods that need data of a model: each is fitted on a few uncached runs and returned as a policy."""

from collections.abc import Callable

from cachesmith.calibrate.methods import (
    dpcache,
    eoc,
    hyca,
    l2p,
    magcache,
    scalingcache,
    sglang_dpcache,
    smoothcache,
    svd_cache,
    teacache,
)
from cachesmith.calibrate.methods.searches import budcache, golden_path
from cachesmith.policies import Policy

METHODS: dict[str, Callable[..., Policy]] = {
    "budcache": budcache.fit,
    "dpcache": dpcache.fit,
    "eoc": eoc.fit,
    "golden-path": golden_path.fit,
    "hyca": hyca.fit,
    "l2p": l2p.fit,
    "magcache": magcache.fit,
    "scalingcache": scalingcache.fit,
    "sglang-dpcache": sglang_dpcache.fit,
    "smoothcache": smoothcache.fit,
    "svd-cache": svd_cache.fit,
    "teacache": teacache.fit,
}
"""Name -> `fit(renderer, requests, **options)`: samples `requests` uncached and returns a policy bound to no model."""
