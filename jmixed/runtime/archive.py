"""A file of plain values and arrays: a zip of one JSON text and of NumPy's files, which any program can open.

Nothing in it is code, and reading it runs none. Its last bytes, the comment of the zip, are a digest of all before, so
that every change is noticed, also where the checksums of a zip do not look. Members are not compressed: none can be
larger than the file.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from jmixed.errors import DataError, JmixedError
from jmixed.runtime.version import __version__

FORMAT = 1
"""The number of this format: raised by whatever an earlier version of the package could not read."""

TEXT = "jmixed.json"
SEAL = b"jmixed sha256:"
SEALED = len(SEAL) + 2 * hashlib.sha256().digest_size

LARGE = 2**30
"""Bytes of an array for which a zip needs its wide form: that is due at twice as many."""

UNREADABLE = (
    *(zipfile.BadZipFile, EOFError, NotImplementedError, LookupError, TypeError, ValueError, AttributeError),
    *(ArithmeticError, MemoryError, OSError, RuntimeError, ImportError, AssertionError),
)
"""What reading ends in when a file is not what it says."""


class Content(NamedTuple):
    """What a file holds."""

    values: Any  # dicts with text as keys, lists, text, numbers, truth values and None
    array: Callable[[int], np.ndarray]  # the array of a number
    writer: str  # the version of the package that wrote it


def pack(values: Any, arrays: Sequence[np.ndarray]) -> bytes:
    """The bytes of a file of plain values, and of arrays that NumPy writes without pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        head = {"format": FORMAT, "jmixed": __version__, "values": values}
        # Members bear the first date that a zip can have: the same result makes the same file.
        archive.writestr(zipfile.ZipInfo(TEXT), json.dumps(head, allow_nan=False))
        for number, array in enumerate(arrays):
            with archive.open(zipfile.ZipInfo(_member(number)), "w", force_zip64=array.nbytes > LARGE) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        archive.comment = SEAL + bytes(SEALED - len(SEAL))
    with file.getbuffer() as content:
        content[-SEALED:] = seal(content[:-SEALED])
    return file.getvalue()


def unpack(content: bytes, name: str) -> Content:
    """What `pack` made bytes of; of anything else the error says what it is, with the name of the file."""
    if not content:
        raise DataError(f"{name}: the file is empty. Save the result again, or look for another copy")
    if content[:1] == b"\x80":
        raise DataError(
            f"{name}: is a pickle, as result.save wrote in earlier versions. jm.load does not open pickles any more, "
            "because opening one can run any code. Fit the model again and save it; or, if you wrote the file "
            "yourself, open it with pickle.load and the version of jmixed that wrote it"
        )
    if content[-SEALED : -SEALED + len(SEAL)] != SEAL:
        if content[:4] == b"PK\x03\x04" and b"jmixed.json" in content[:64]:
            raise DataError(
                f"{name}: is cut off or damaged: it does not end as saved results do. Save the result again"
            )
        raise DataError(
            f"{name}: is no saved result of jmixed, or one that is cut off. Give a file that result.save wrote"
        )
    if seal(memoryview(content)[:-SEALED]) != content[-SEALED:]:
        raise DataError(f"{name}: is damaged: its content is not what was saved. Save the result again")
    with refusing(name):
        archive = zipfile.ZipFile(io.BytesIO(content))
        head = json.loads(_read(archive, TEXT))
        number, writer, values = head["format"], str(head["jmixed"]), head["values"]
        if type(number) is not int or number < 1:
            raise ValueError(f"its format is {number!r}")
    if number > FORMAT:
        raise DataError(
            f"{name}: was written by jmixed {writer} in format {number}, and this is jmixed {__version__}, which reads "
            f"formats up to {FORMAT}. Install jmixed {writer} or later"
        )
    return Content(values, lambda place: _array(archive, place), writer)


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Whatever goes wrong with the content of a file is an error of jmixed's, which names the file."""
    try:
        yield
    except JmixedError:
        raise
    except UNREADABLE as error:
        raise DataError(
            f"{name}: is no whole file of a saved result ({type(error).__name__}: {error}). It was not written by "
            "result.save, or changed since: save the result again"
        ) from error


def seal(content: bytes | memoryview) -> bytes:
    """The comment that makes of a zip, which ends where this begins, a file of ours."""
    return SEAL + hashlib.sha256(content).hexdigest().encode()


def _member(number: int) -> str:
    return f"a{number}.npy"


def _read(archive: zipfile.ZipFile, member: str) -> bytes:
    if archive.getinfo(member).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"its member {member} is compressed")
    return archive.read(member)


def _array(archive: zipfile.ZipFile, number: int) -> np.ndarray:
    return np.lib.format.read_array(io.BytesIO(_read(archive, _member(number))), allow_pickle=False)
