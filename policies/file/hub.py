"""Policy files on the Hugging Face Hub: which repository a name means, the download, and what can go wrong with either.

huggingface_hub is imported where it is used: reading a local file needs neither it nor a network.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cachesmith.policies.errors import PolicyError
from cachesmith.policies.file.reach import expect_reply

FILENAME = "cachesmith.policy.safetensors"
"""What the policy file of a repository is called."""

REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")


class Repository(NamedTuple):
    """Where on the Hub a policy is; `revision` None: on the main branch."""

    name: str
    revision: str | None = None


def repository(path: str | os.PathLike[str], suffix: str) -> Repository | None:
    """Return what `path` names where it has the form `user/name` or, as huggingface_hub has it, `user/name@revision`.

    None where there is a file of that name here.
    """
    text = os.fspath(path)
    local = text.endswith(suffix) or os.path.exists(text)  # noqa: PTH110  # a path may be too long to ask
    found = None if local else REPOSITORY.fullmatch(text)
    return found and Repository(found[1], found[2])


def download(repo_id: str, revision: str | None, token: str | bool | None) -> Path:
    """Return the path of the repository's policy file, from huggingface_hub's cache where it is there."""
    with speaking_of(repo_id, revision):
        from huggingface_hub import hf_hub_download

        expect_reply(repo_id, FILENAME, revision)
        found = hf_hub_download(repo_id, FILENAME, revision=revision, token=token, library_name="cachesmith")
        # an entry of the cache is a link
        return Path(found).resolve()


@contextmanager
def speaking_of(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises in the block into one sentence with a remedy."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise PolicyError(
            f"{error.name} is not installed, and there is no file {repo_id}; install it with: "
            "pip install huggingface_hub"
        ) from None
    except Exception as error:
        sentence = _sentence(error, repo_id, revision)
        if sentence is None:
            raise
        raise PolicyError(sentence) from error


LOGIN = "log in with `hf auth login` or pass a token"
UNREACHABLE = "the Hub cannot be reached for {repo}: {reason}; check the connection"
NO_POLICY = f"{{repo}} holds no {FILENAME}, so it is no policy; check the name"

SENTENCES = {
    "GatedRepoError": f"{{repo}} is gated: ask for access at https://huggingface.co/{{repo}}, then {LOGIN}",
    "RepositoryNotFoundError": (
        "there is no file {repo}, and no repository of that name on the Hub that you may see; check the name, or, if "
        f"it is private, {LOGIN}"
    ),
    "RevisionNotFoundError": "{repo} has no revision {revision!r}; name a branch, tag or commit of it",
    "LocalEntryNotFoundError": (
        "{repo} was not downloaded before, and the Hub cannot be reached; connect, or give the path of a policy file"
    ),
    "EntryNotFoundError": NO_POLICY,
    "RemoteEntryNotFoundError": NO_POLICY,
    "LocalTokenNotFoundError": f"you are not logged in, which {{repo}} needs; {LOGIN}",
    "HFValidationError": "{repo!r} is no name of a repository; give it as user/name",
    "HfHubHTTPError": "the Hub refused {repo}: {reason}; check your token's rights, or try again",
    "OSError": UNREACHABLE,
    "TransportError": UNREACHABLE,
}
"""Class of an error, of huggingface_hub, Python or its HTTP client -> what the user can do."""


def _sentence(error: Exception, repo_id: str, revision: str | None) -> str | None:
    """Say what the user can do, by the most special class known; None for what is no fault of the Hub's."""
    names = (kind.__name__ for kind in type(error).__mro__)
    found = next((SENTENCES[name] for name in names if name in SENTENCES), None)
    return found and found.format(repo=repo_id, revision=revision, reason=_first_line(error))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0][:160] if lines else type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text)
