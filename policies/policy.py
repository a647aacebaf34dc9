"""The policy: one value that says how a model is sampled with caching."""

import hashlib
from importlib import import_module
from typing import Any

import numpy as np

from cachesmith.policies.base import MAIN, Arrays
from cachesmith.policies.check import check_document
from cachesmith.policies.document import Document, canonical
from cachesmith.policies.errors import PolicyError
from cachesmith.policies.profile import Profile, Sampled
from cachesmith.policies.references import references


class Policy:
    """A checked document together with the arrays it names.

    The document is frozen. The arrays are the caller's own and can be written to: that changes `id`, equality and hash,
    so leave them alone once the policy is in use. What is saved is checked again.

    Raises `PolicyError` when an array is missing, unused, of wrong dtype or shape, or not finite, or when
    a mask's length differs from the sampler's number of steps.
    """

    __slots__ = ("arrays", "document")

    def __init__(self, document: Document, arrays: Arrays | None = None):
        self.document = document
        self.arrays: Arrays = dict(arrays or {})
        check_document(document, self.arrays)

    @property
    def id(self) -> str:
        """Hash of the content: first 16 hex digits of a sha256 over the document and every array."""
        return content_id(canonical(self.document), self.arrays)

    def profile(self, name: str | None = None) -> Profile:
        """Return the named profile; `None` means the only one, or `balanced` if there are several."""
        profiles = self.document.profiles
        if name is None:
            name = next(iter(profiles)) if len(profiles) == 1 else "balanced"
        if name not in profiles:
            raise PolicyError(
                f"policy {self.document.name!r} has no profile {name!r}; choose from {', '.join(profiles)}"
            )
        return profiles[name]

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the policy with a generated card to the Hugging Face Hub; return the commit's address.

        options: those of `cachesmith.hub.push`, such as `base_model`, `report`, `private`, `revision` and `token`.
        Raises `PolicyError` where the Hub refuses or cannot be reached.
        """
        # by name: what reads a policy must not import what draws a card
        address: str = import_module("cachesmith.hub").push(self, repo_id, **options)
        return address

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)


def unbound(profile: Profile, arrays: Arrays | None = None, name: str = "candidate") -> Policy:
    """One profile, with the arrays it names, as a policy that is bound to no model."""
    return Policy(Document(name=name, profiles={"default": profile}), arrays)


def denoiser_policy(policy: Policy, name: str = MAIN) -> Policy | None:
    """Return what `policy` says of the denoiser `name`; None where it is not for that one.

    What names no denoisers and no model is for all of them.
    """
    document = policy.document
    told = next(iter(document.profiles.values())).denoisers  # all profiles have the same
    if name == MAIN and told:
        profiles = {n: each.model_copy(update={"denoisers": {}}) for n, each in document.profiles.items()}
        return _with(policy, document.model_copy(update={"profiles": profiles}))
    if name in told:
        profiles = {n: _profile(each.denoisers[name]) for n, each in document.profiles.items()}
        model = document.models.get(name)
        return _with(policy, document.model_copy(update={"profiles": profiles, "model": model}))
    return policy if name == MAIN or not (told or document.model) else None


def _profile(own: Sampled) -> Profile:
    return Profile(**{name: getattr(own, name) for name in type(own).model_fields})


def _with(policy: Policy, document: Document) -> Policy:
    own = document.model_copy(update={"models": {}})
    named = {reference.name for reference in references(own)}
    return Policy(own, {name: array for name, array in policy.arrays.items() if name in named})


def content_id(document: bytes, arrays: Arrays) -> str:
    """Return the first 16 hex digits of a sha256 over the document's bytes and every array."""
    digest = hashlib.sha256(document)
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}:{array.dtype}:{array.shape}:".encode())
        # read where it lies: a copy of every array would double what reading a file takes
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]
