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
    "budcache": budcache.fit_budcache,
    "dpcache": dpcache.fit_dpcache,
    "eoc": eoc.fit_eoc,
    "golden-path": golden_path.fit_golden_path,
    "hyca": hyca.fit_hyca,
    "l2p": l2p.fit_l2p,
    "magcache": magcache.fit_magcache,
    "scalingcache": scalingcache.fit_scalingcache,
    "sglang-dpcache": sglang_dpcache.fit_sglang_dpcache,
    "smoothcache": smoothcache.fit_smoothcache,
    "svd-cache": svd_cache.fit_svd_cache,
    "teacache": teacache.fit_teacache,
}
"""Name -> `fit(renderer, requests, **options)`: samples `requests` uncached and returns a policy bound to no model."""
