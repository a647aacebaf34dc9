"""Upload a policy with its card: one commit, so that a repository never holds half of it."""

from pathlib import Path

from cachesmith.hub.card import Base, card
from cachesmith.hub.facts import FRONT, PAGE, read_facts
from cachesmith.hub.front import front_picture
from cachesmith.policies import Policy, encode
from cachesmith.policies.file.hub import FILENAME, speaking_of
from cachesmith.policies.file.reach import connect

Files = dict[str, bytes]
"""A repository's content: path -> bytes."""


def files_of(repo_id: str, policy: Policy, base: Base | None = None, report: Path | None = None) -> Files:
    """Return what is uploaded: the policy, its card, the front as a picture, and the report's page if there is one.

    Raises `PolicyError` where the report is missing, or of another policy.
    """
    base = base or Base()
    facts = None if report is None else read_facts(report, policy.id)
    files: Files = {FILENAME: encode(policy)}
    if report is not None:
        files |= {name: (report / name).read_bytes() for name in (FRONT, PAGE) if (report / name).exists()}
    if FRONT not in files and (picture := front_picture(policy.document)) is not None:
        files[FRONT] = picture
    files["README.md"] = card(repo_id, policy, base, facts, FRONT in files).encode()
    return files


def push(
    policy: Policy,
    repo_id: str,
    *,
    base_model: str | None = None,
    base_revision: str | None = None,
    report: Path | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    message: str | None = None,
) -> str:
    """Upload a policy to `repo_id` (`user/name`), which is made if it is missing, and return the commit's address.

    base_model, base_revision: the repository and revision of the model it was calibrated on, for the card. report: the
    folder that `calibrate` wrote: seconds, hardware, cost and command come from there. private: of a new repository.
    revision: a branch, made if it is missing. token: by default that of `hf auth login`. Raises `PolicyError` where the
    Hub refuses or cannot be reached; nothing is uploaded then.
    """
    files = files_of(repo_id, policy, Base(base_model, base_revision), report)
    with speaking_of(repo_id, revision):
        from huggingface_hub import CommitOperationAdd, HfApi

        connect()
        api = HfApi(token=token, library_name="cachesmith")
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(path, content) for path, content in files.items()],
            commit_message=message or f"Policy {policy.id}",
            revision=revision,
        )
    return str(commit.commit_url)
