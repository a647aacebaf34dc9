"""Published methods that need data of a model: each is fitted on a few uncached runs and returned as a policy."""

from collections.abc import Callable

from cachesmith.calibrate.methods import (
    dpcache,
    eoc,
    hyca,
    magcache,
    scalingcache,
    smoothcache,
    svd_cache,
    teacache,
)
from cachesmith.policies import Policy

METHODS: dict[str, Callable[..., Policy]] = {
    "dpcache": dpcache.fit,
    "eoc": eoc.fit,
    "hyca": hyca.fit,
    "magcache": magcache.fit,
    "scalingcache": scalingcache.fit,
    "smoothcache": smoothcache.fit,
    "svd-cache": svd_cache.fit,
    "teacache": teacache.fit,
}
"""Name -> `fit(renderer, requests, **options)`: samples `requests` uncached and returns a policy bound to no model."""
