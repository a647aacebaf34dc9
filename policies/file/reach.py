"""Whether the Hub can be reached, told within seconds: huggingface_hub goes on asking for half a minute or more."""

import os
import time

SECONDS = 5.0
"""Longest wait for a connection, where `HF_HUB_ETAG_TIMEOUT`, huggingface_hub's own setting, is not given."""

AGAIN = 1.0
"""Seconds after which a refused connection is tried once more; what took longer to fail is not."""

UNCONNECTED = {"ConnectError", "ConnectTimeout", "ConnectionError"}
"""Errors of the HTTP clients that huggingface_hub has used (requests, httpx) where no connection was made. Whoever
has one, however slow, is left to huggingface_hub's patience."""


def expect_reply(repo_id: str, filename: str, revision: str | None = None) -> None:
    """Raise the HTTP client's error where a file must come from the Hub, and no connection to it can be made.

    Returns where the file is in the local cache, which is used without a network, and in offline mode.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    cached = try_to_load_from_cache(repo_id, filename, revision=revision)
    if not constants.HF_HUB_OFFLINE and not isinstance(cached, str):
        connect()


def connect() -> None:
    """Raise the HTTP client's error where no connection to the Hub can be made."""
    for last in (False, True):
        began = time.monotonic()
        try:
            return _ask()
        except Exception as error:
            if not _unconnected(error):
                return None
            if last or time.monotonic() - began > AGAIN:
                raise
            time.sleep(AGAIN)
    return None


def _ask() -> None:
    """Ask the Hub for anything. A status is an answer, whichever it is."""
    from huggingface_hub import constants, get_session

    given = "HF_HUB_ETAG_TIMEOUT" in os.environ
    get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT if given else SECONDS)


def _unconnected(error: Exception) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & UNCONNECTED) and "OfflineModeIsEnabled" not in names
