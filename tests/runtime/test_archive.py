"""Files of plain values and arrays: the same again, or an error that says what is wrong."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest

from jmixed.errors import DataError
from jmixed.runtime import archive

ARRAYS = [np.arange(6.0).reshape(2, 3), np.array(["2020-01-01"], "M8[ns]"), np.array(3, np.int8), np.zeros(0, bool)]
VALUES = {"a": [1, 2.5, None, True, "ü\udc80"], "big": 2**80}


def resealed(content):
    """A zip with the seal that `pack` would give it: what someone may write who knows how."""
    return content[: -archive.SEALED] + archive.seal(content[: -archive.SEALED])


def remade(change, content=None, **options):
    """A file whose text and members were changed, and which was sealed again."""
    old = zipfile.ZipFile(io.BytesIO(content or archive.pack(VALUES, ARRAYS)))
    members = {name: old.read(name) for name in old.namelist()}
    change(members)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as new:
        for name, member in members.items():
            new.writestr(name, member)
        new.comment = old.comment
    return resealed(file.getvalue())


def head(**changes):
    """A change of the first lines of a file."""

    def change(members):
        members["jmixed.json"] = json.dumps(json.loads(members["jmixed.json"]) | changes).encode()

    return change


def test_values_and_arrays_come_back():
    content = archive.pack(VALUES, ARRAYS)
    found = archive.unpack(content, "file")
    assert found.values == VALUES
    for number, array in enumerate(ARRAYS):
        again = found.array(number)
        assert again.dtype == array.dtype
        np.testing.assert_array_equal(again, array)
    assert content == archive.pack(VALUES, ARRAYS)
    assert zipfile.ZipFile(io.BytesIO(content)).testzip() is None
    assert archive.unpack(remade(lambda _: None), "file").values == VALUES


def test_every_flipped_bit_and_every_cut_is_noticed():
    content = archive.pack({"a": 1}, [np.arange(3)])
    for place in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(DataError, match="^name: "):
            archive.unpack(bytes(damaged), "name")
    for length in range(len(content)):
        with pytest.raises(DataError, match="^name: "):
            archive.unpack(content[:length], "name")


def foreign_zip():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("readme.txt", "text")
    return file.getvalue()


def npz():
    file = io.BytesIO()
    np.savez(file, a=np.arange(3))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"text", "no saved result of jmixed"),
        (bytes(1000), "no saved result of jmixed"),
        (foreign_zip(), "no saved result of jmixed"),
        (npz(), "no saved result of jmixed"),
        (pickle.dumps({"a": 1}), "is a pickle.*Fit the model again.*pickle.load"),
        (archive.pack(1, [])[:200], "cut off"),
        (remade(head(format=archive.FORMAT + 1, jmixed="9.1")), "jmixed 9.1 in format 2.*Install jmixed 9.1 or later"),
        (remade(head(format="one")), "its format is 'one'"),
        (remade(head(format=True)), "its format is True"),
        (remade(lambda members: members.pop("jmixed.json")), "no whole file"),
        (remade(lambda members: members.update({"jmixed.json": b"{"})), "no whole file"),
        (remade(lambda members: members.update({"jmixed.json": b"[" * 10**5})), "no whole file"),
        (remade(lambda members: members.update({"jmixed.json": b"[1]"})), "no whole file"),
        (remade(lambda _: None, compression=zipfile.ZIP_DEFLATED), "compressed"),
    ],
)
def test_what_is_no_such_file_is_told_apart(content, words):
    with pytest.raises(DataError, match=f"(?s)^name: .*{words}"):
        archive.unpack(content, "name")


class Planted:
    """What runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_objects_in_arrays_are_neither_written_nor_read(tmp_path):
    with pytest.raises(ValueError, match="Object arrays"):
        archive.pack(None, [np.array([None])])
    planted = io.BytesIO()
    np.save(planted, np.array([Planted(f"touch {tmp_path / 'ran'}")], object), allow_pickle=True)
    content = remade(lambda members: members.update({"a0.npy": planted.getvalue()}))
    with pytest.raises(DataError, match="name: is no whole file.*Object arrays"), archive.refusing("name"):
        archive.unpack(content, "name").array(0)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '<f8', 'fortran_order': False}",
        "__import__('os').system('false')",
    ],
)
def test_arrays_that_are_not_what_they_say(header):
    text = header.encode() + b"\n"
    member = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(8)
    content = remade(lambda members: members.update({"a0.npy": member}))
    with pytest.raises(DataError, match="name: is no whole file"), archive.refusing("name"):
        archive.unpack(content, "name").array(0)
