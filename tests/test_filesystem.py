"""The operating system's files, as everything durable relies on them."""

from __future__ import annotations

import array
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_sink.errors import StagingError
from ray_sink.filesystem import PosixFilesystem, chunks_of, temp_for

fs = PosixFilesystem()


def failing(code: int, calls: list[object] | None = None) -> Callable[..., int]:
    def fail(*args: object, **kwargs: object) -> int:
        if calls is not None:
            calls.append(args)
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("data", [b"", b"abc", bytearray(b"abc"), memoryview(b"abcdef")[::1], memoryview(b"")])
def test_what_is_written_is_read(tmp_path: Path, data: bytes) -> None:
    file = fs.create(tmp_path / "x")
    file.write(data)
    file.write(data)
    file.sync()
    file.close()
    file.close()
    assert fs.read(tmp_path / "x") == bytes(data) * 2
    assert fs.size(tmp_path / "x") == 2 * len(data)


@pytest.mark.parametrize("numbers", [[], [1.0, 2.0]])
def test_a_buffer_of_numbers_is_written_as_its_bytes(tmp_path: Path, numbers: list[float]) -> None:
    file = fs.create(tmp_path / "x")
    file.write(memoryview(array.array("d", numbers)))
    file.close()
    assert fs.read(tmp_path / "x") == array.array("d", numbers).tobytes()


def test_a_short_write_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    file = fs.create(tmp_path / "x")
    file.write(b"0123456789")
    file.close()
    assert fs.read(tmp_path / "x") == b"0123456789"


def test_create_is_exclusive_and_follows_no_symlink(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "elsewhere")
    for name in ("x", "dangling"):
        with pytest.raises(FileExistsError):
            fs.create(tmp_path / name)
    assert (tmp_path / "x").read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()


def test_files_and_folders_have_the_modes_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        fs.create(tmp_path / "x").close()
        fs.create_with(tmp_path / "y", b"")
        fs.make_dirs(tmp_path / "d", below=tmp_path)
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "xyd"] == [0o640, 0o640, 0o750]


def test_create_with_has_one_winner(tmp_path: Path) -> None:
    fs.create_with(tmp_path / "x", b"first")
    with pytest.raises(FileExistsError):
        fs.create_with(tmp_path / "x", b"second")
    assert fs.read(tmp_path / "x") == b"first"
    assert fs.list(tmp_path) == ["x"]


def test_create_with_works_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(os, "link", failing(errno.EPERM, calls))
    fs.create_with(tmp_path / "x", b"first")
    with pytest.raises(FileExistsError):
        fs.create_with(tmp_path / "x", b"second")
    assert len(calls) == 2
    assert fs.read(tmp_path / "x") == b"first"
    assert fs.list(tmp_path) == ["x"]


def test_create_with_knows_its_own_success_when_the_reply_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS sends a request again when the reply is lost, and then meets the link that it has made itself."""
    link = os.link

    def lossy(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", lossy)
    fs.create_with(tmp_path / "x", b"mine")
    assert fs.read(tmp_path / "x") == b"mine"
    assert fs.list(tmp_path) == ["x"]


@pytest.mark.parametrize("won", [True, False], ids=["somebody else was first", "nobody was"])
def test_create_with_whose_temp_was_swept_has_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, won: bool) -> None:
    fs = PosixFilesystem()
    link = os.link

    def swept(source: Path, target: Path) -> None:
        monkeypatch.undo()
        (temp,) = tmp_path.iterdir()
        assert temp_for(temp.name) == "name"
        if won:
            fs.create_with(tmp_path / "other", b"theirs")
            fs.rename(tmp_path / "other", target)
        fs.remove(temp)
        link(source, target)

    monkeypatch.setattr(os, "link", swept)
    with pytest.raises(FileExistsError if won else FileNotFoundError):
        fs.create_with(tmp_path / "name", b"ours")


def test_replace_with_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    for data in (b"one", b"two"):
        fs.replace_with(tmp_path / "x", data)
        assert fs.read(tmp_path / "x") == data
    assert fs.list(tmp_path) == ["x"]


@pytest.mark.parametrize("operation", ["write", "fsync", "replace", "link"])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    calls: list[object] = []
    monkeypatch.setattr(os, operation, failing(errno.EIO, calls))
    method = fs.replace_with if operation in ("write", "replace") else fs.create_with
    with pytest.raises(OSError, match="Input/output error"):
        method(tmp_path / "x", b"data")
    assert len(calls) == 1
    assert fs.list(tmp_path) == []


def test_without_hard_links_a_failure_leaves_no_part_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EOPNOTSUPP))
    fsync = os.fsync
    synced: list[int] = []

    def second_fails(fd: int) -> None:
        synced.append(fd)
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", second_fails)
    with pytest.raises(OSError, match="No space"):
        fs.create_with(tmp_path / "x", b"data")
    assert len(synced) == 2
    assert fs.list(tmp_path) == []


def test_size_is_that_of_a_regular_file_or_none(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"123")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    (tmp_path / "d").mkdir()
    assert fs.size(tmp_path / "x") == 3
    for name in ("link", "d", "missing", "x/below"):
        assert fs.size(tmp_path / name) is None


def test_removing_and_listing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    fs.remove(tmp_path / "x")
    fs.remove_dir(tmp_path / "d")
    assert fs.list(tmp_path / "d") == []
    (tmp_path / "x").write_text("")
    assert fs.list(tmp_path / "x") == []


def test_a_folder_that_is_not_empty_stays(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x").write_text("")
    with pytest.raises(OSError, match="not empty"):
        fs.remove_dir(tmp_path / "d")


def test_make_dirs_syncs_every_folder_that_got_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(PosixFilesystem, "sync_dir", lambda self, path: synced.append(path))
    fs.make_dirs(tmp_path / "a/b/c", below=tmp_path)
    assert (tmp_path / "a/b/c").is_dir()
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a/b"]


@pytest.mark.parametrize("to", ["outside", "missing"])
def test_make_dirs_does_not_go_through_a_symlink(tmp_path: Path, to: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / to)
    with pytest.raises(StagingError, match="in the way"):
        fs.make_dirs(tmp_path / "root" / "link" / "d", below=tmp_path / "root")
    assert fs.list(tmp_path / "outside") == []


def test_make_dirs_says_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(StagingError, match=str(tmp_path / "x")):
        fs.make_dirs(tmp_path / "x/d", below=tmp_path)


def test_make_dirs_makes_nothing_above_the_root(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fs.make_dirs(tmp_path / "missing/d", below=tmp_path / "missing")
    with pytest.raises(ValueError, match="subpath"):
        fs.make_dirs(tmp_path / "a", below=tmp_path / "b")


def test_renaming_replaces_and_syncing_a_folder_works(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("new")
    (tmp_path / "y").write_text("old")
    fs.rename(tmp_path / "x", tmp_path / "y")
    fs.sync_dir(tmp_path)
    assert fs.read(tmp_path / "y") == b"new"
    assert fs.list(tmp_path) == ["y"]
    with pytest.raises(FileNotFoundError):
        fs.sync_dir(tmp_path / "missing")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100])
def test_chunks_are_the_whole_file(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "x").write_bytes(data)
    assert b"".join(bytes(chunk) for chunk in chunks_of(tmp_path / "x", 8)) == data
