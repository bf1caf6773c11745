"""Files: whole or not there, sealed, and nobody else's."""

import errno
import os

import pytest

from jmixed.runtime import files

POSIX = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners and permissions as POSIX has them")


def fill_disk(monkeypatch):
    """From now on every file is cut off in the middle."""

    class Full:
        def __init__(self, descriptor, mode):
            self.descriptor = descriptor

        def __enter__(self):
            return self

        def __exit__(self, *_):
            os.close(self.descriptor)

        def write(self, content):
            os.write(self.descriptor, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdopen", Full)


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "result"
    files.write_whole(path, b"first")
    with monkeypatch.context() as patch:
        fill_disk(patch)
        for name in (path, tmp_path / "another"):
            with pytest.raises(OSError, match="No space left"):
                files.write_whole(name, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]
    files.write_whole(path, b"third")
    assert path.read_bytes() == b"third"


@POSIX
def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    path = tmp_path / "nowhere" / "result"
    with pytest.raises(FileNotFoundError) as caught:
        files.write_whole(path, b"first")
    assert caught.value.filename == str(path)
    assert str(path) in str(caught.value)


def test_permissions_and_links_stay(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(path)
    before = os.umask(0o027)
    try:
        files.write_whole(link, b"first")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o604)
    files.write_whole(link, b"second")
    assert link.is_symlink()
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"second", 0o604)


@POSIX
def test_what_is_no_file_is_written_to():
    reading, writing = os.pipe()
    files.write_whole(f"/dev/fd/{writing}", b"through a pipe")
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"through a pipe"


def test_a_seal_finds_every_flipped_bit():
    sealed = files.seal(b"content")
    assert files.seal_holds(sealed)
    # A bit of the mark itself leaves content without a seal.
    for place in range(8 * len(sealed)):
        damaged = bytearray(sealed)
        damaged[place // 8] ^= 1 << place % 8
        assert not files.seal_holds(bytes(damaged))
    assert files.seal_holds(b"content") is None
    assert files.seal_holds(b"") is None
    assert files.seal_holds(b"less" + sealed) is False


@POSIX
@pytest.mark.parametrize(
    ("owner", "mode", "own"),
    [
        (os.geteuid() if hasattr(os, "geteuid") else 0, 0o755, True),
        (os.geteuid() if hasattr(os, "geteuid") else 0, 0o775, False),
        (os.geteuid() if hasattr(os, "geteuid") else 0, 0o1777, False),
        (0, 0o755, True),
        (54321, 0o700, False),
    ],
)
def test_only_the_user_and_the_system_are_trusted(owner, mode, own):
    found = os.stat_result((0o40000 | mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))
    assert files.is_own(found) is own
