"""Policy files: `NAME.policy.safetensors`, read without torch and without executing anything."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cachesmith.files import open_plain, write_atomically
from cachesmith.policies.document import FORMAT, Document, canonical
from cachesmith.policies.errors import PolicyError, refusing
from cachesmith.policies.file.container import MAX_HEADER, Contents, header_size, pack, read_header, unpack
from cachesmith.policies.file.foreign import LONGEST
from cachesmith.policies.file.hub import download, repository
from cachesmith.policies.file.migrations import format_of, upgrade
from cachesmith.policies.file.strict_json import parse_object
from cachesmith.policies.policy import Policy, content_id

SUFFIX = ".policy.safetensors"


def save(policy: Policy, path: str | os.PathLike[str]) -> None:
    """Write the policy; the file appears whole or not at all."""
    target = Path(path)
    if not target.name.endswith(SUFFIX) or target.name == SUFFIX:
        raise PolicyError(f"a policy file's name must end in {SUFFIX}, got {target.name!r}; rename it")
    data = encode(policy)
    with _named(target, "write"):
        write_atomically(target, data)


def load(
    path: str | os.PathLike[str], *, revision: str | None = None, token: str | bool | None = None
) -> Policy:
    """Read a policy file; anything wrong with it is a `PolicyError`.

    path: a file or, where there is none of that name, a repository of the Hugging Face Hub as `user/name`, whose file
    is kept in huggingface_hub's cache and read from there without a network. revision: a branch, tag or commit of it,
    which may also be given as `user/name@revision`; token: for private ones, by default that of `hf auth login`.
    """
    found = repository(path, SUFFIX)
    if found is None and revision is not None:
        raise PolicyError(f"{path} is a file, which has no revisions; leave revision={revision!r} out")
    if found is not None and found.revision is not None and revision not in (None, found.revision):
        raise PolicyError(
            f"{path} names a revision, and so does revision={revision!r}; leave one of them out"
        )
    source = Path(path) if found is None else download(found.name, revision or found.revision, token)
    with _named(source, "read"):
        return _decode(_read(source))


def resolve_policy(policy: Policy | str | os.PathLike[str]) -> Policy:
    """Return a policy as it is, and load one that is named by what `load` takes."""
    return policy if isinstance(policy, Policy) else load(policy)


def encode(policy: Policy) -> bytes:
    """Return the policy as the bytes of a policy file: equal policies give equal bytes."""
    # arrays can be written to after a policy was built, so they are checked once more
    checked = Policy(policy.document, policy.arrays)
    return pack(Contents(canonical(checked.document).decode(), checked.id, checked.arrays))


def decode(data: bytes) -> Policy:
    """Return the policy in the bytes of a policy file, or raise `PolicyError`."""
    header = read_header(data[: 8 + MAX_HEADER], len(data))
    return _decode(unpack(header, bytearray(memoryview(data)[header.start :])))


def _decode(contents: Contents) -> Policy:
    raw = parse_object(contents.document, "the document")
    version = format_of(raw)
    _check_id(contents)
    with refusing("the document"):
        document = Document.model_validate_json(json.dumps(upgrade(raw)))
    policy = Policy(document, contents.arrays)
    if version == FORMAT and canonical(document) != contents.document.encode():
        raise PolicyError(
            "the document is not in the form cachesmith writes; create it with cachesmith and save it again"
        )
    return policy


def _check_id(contents: Contents) -> None:
    found = content_id(contents.document.encode(), contents.arrays)
    if found != contents.policy_id:
        raise PolicyError(
            f"the content has id {found}, the file says {contents.policy_id[:40]!r}: "
            "it was modified after it was saved; copy the original again"
        )


def _read(source: Path) -> Contents:
    with open_plain(source) as file:
        size = os.fstat(file.fileno()).st_size
        # the header is judged by its announced length before it is read, and the arrays by the header
        length = header_size(file.read(min(LONGEST, size)), size)
        file.seek(0)
        header = read_header(file.read(8 + length), size)
        body = bytearray(size - header.start)
        if file.readinto(body) != len(body):  # type: ignore[attr-defined]
            raise PolicyError("it was changed while it was read; read it again")
        return unpack(header, body)


@contextmanager
def _named(path: Path, verb: str) -> Iterator[None]:
    """Say which file an error is about."""
    try:
        yield
    except PolicyError as error:
        raise PolicyError(f"cannot {verb} {path}: {error}") from None
    except OSError as error:
        raise PolicyError(
            f"cannot {verb} {path}: {error.strerror or error}; check the path and its permissions"
        ) from None
    except ValueError as error:
        raise PolicyError(f"cannot {verb} {str(path)!r}: {error}; check the path") from None
