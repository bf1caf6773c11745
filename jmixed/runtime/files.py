"""Files that are whole or not there, that tell whether they are as they were written, and that no stranger has made."""

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

SEAL = b"\nsha256:"


def write_whole(path: str | os.PathLike, content: bytes, mode: int = 0o666) -> None:
    """Write a file that ends up with all of the content, or stays as it was; nothing is left beside it.

    `mode` has the permissions of a new file, less the mask of the process; one that is there keeps its own. What is no
    ordinary file, such as a pipe, is simply written to.
    """
    if Path(path).exists() and not Path(path).is_file():
        Path(path).write_bytes(content)
        return
    # A link stays one: what it points to is replaced.
    path = Path(os.path.realpath(path))
    beside = path.with_name(f".jmixed-{secrets.token_hex(8)}")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(beside, flags, mode), "wb") as file:
            file.write(content)
        if path.exists():
            beside.chmod(path.stat().st_mode & 0o777)
        beside.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError) and error.filename == str(beside):
            # The caller knows nothing of the file beside.
            error.filename = str(path)
        raise


def seal(content: bytes) -> bytes:
    """The content with its digest behind it, which pickle does not look at."""
    return content + SEAL + hashlib.sha256(content).digest()


def seal_holds(content: bytes) -> bool | None:
    """Whether sealed content is as it was written; None where there is no seal.

    The seal finds what went wrong by accident. Who can write a file can seal it too: see `is_own`.
    """
    whole, mark, digest = content[: -len(SEAL) - 32], content[-len(SEAL) - 32 : -32], content[-32:]
    return hashlib.sha256(whole).digest() == digest if mark == SEAL else None


def is_own(status: os.stat_result) -> bool:
    """Whether nobody but this user and the system's can have written a file, or put one into a directory."""
    if not hasattr(os, "geteuid"):
        # Elsewhere the directories of a user are closed to others.
        return True
    return status.st_uid in (os.geteuid(), 0) and not status.st_mode & 0o022
