"""Files that are often found in place of the one that was meant, known by how they begin."""

BEGINNINGS = {
    b"version https://git-lfs": "it is a git-lfs pointer, not the file it stands for; fetch that with: git lfs pull",
    b"<": "it is a web page, such as a login form or a 404; download the file itself",
    b"{": "it is JSON text; turn the configuration of another tool into a policy with: cachesmith convert",
    b"PK\x03\x04": "it is a zip archive or a torch checkpoint; a policy is never inside one",
    b"\x1f\x8b": "it is compressed; unpack it first",
}
LONGEST = max(map(len, BEGINNINGS))


def foreign(beginning: bytes) -> str | None:
    """Say what a file is that begins like this, and what to do; None where it is none of these."""
    text = beginning.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    return next((said for start, said in BEGINNINGS.items() if text.startswith(start)), None)
