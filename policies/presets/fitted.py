"""Published methods without a preset: what they do is fitted on a model first."""

from cachesmith.policies.errors import PolicyError

FITTED = ("dpcache", "eoc", "hyca", "scalingcache", "smoothcache", "svd-cache")
"""The methods of `cachesmith fit` that are not presets as well."""


def refuse_fitted(name: str) -> None:
    """Raise `PolicyError` with the remedy where `name` is a method that has to be fitted."""
    if name in FITTED:
        raise PolicyError(
            f"{name} has to be fitted on a model; make it with: cachesmith fit MODEL --method {name}"
        )
