from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ray_sink.config import UploadOptions
from ray_sink.errors import DestinationError, ObjectExistsError, ObjectMissingError, StoreError, StoreUnavailableError
from ray_sink.filesystem import PosixFilesystem
from ray_sink.stores import open_store
from ray_sink.stores.folder import FolderStore
from tests.stores.conftest import no_multipart, staged


class Recording(PosixFilesystem):
    """The real filesystem, remembering what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Path]] = []
        self.rename_error: OSError | None = None

    def rename(self, source: Path, target: Path) -> None:
        self.calls.append(("rename", target))
        if self.rename_error is not None:
            raise self.rename_error
        super().rename(source, target)

    def sync_dir(self, path: Path) -> None:
        self.calls.append(("sync_dir", path))
        super().sync_dir(path)


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def put(store: FolderStore, folder: Path, path: str, data: bytes = b"data", *, replace: bool = False) -> None:
    local, file = staged(folder, path, data)
    store.put_file(local, file, metadata={}, replace=replace, on_multipart=no_multipart)


def test_a_name_is_durable_after_its_folder_and_every_folder_made_for_it(tmp_path: Path) -> None:
    filesystem, root = Recording(), tmp_path / "new" / "destination"
    put(FolderStore(str(root), root, filesystem), tmp_path / "staging", "a/b/c.pt")
    named = filesystem.calls.index(("rename", root / "a/b/c.pt"))
    assert filesystem.calls[named + 1] == ("sync_dir", root / "a/b")
    synced = {path for what, path in filesystem.calls[:named] if what == "sync_dir"}
    assert {tmp_path, tmp_path / "new", root, root / "a"} <= synced


def test_a_full_disk_is_for_now_and_leaves_no_temp(tmp_path: Path) -> None:
    filesystem, root = Recording(), tmp_path / "destination"
    filesystem.rename_error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(StoreUnavailableError):
        put(FolderStore(str(root), root, filesystem), tmp_path / "staging", "a.pt")
    assert names(root) == []


def test_nothing_is_written_or_read_through_a_symlink(tmp_path: Path) -> None:
    root, outside = tmp_path / "destination", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "file.pt").write_bytes(b"theirs")
    (root / "link").symlink_to(outside)
    (root / "file.pt").symlink_to(outside / "file.pt")
    store = FolderStore(str(root), root)
    with pytest.raises(DestinationError, match="symlink"):
        put(store, tmp_path / "staging", "link/a.pt")
    with pytest.raises(ObjectExistsError):
        put(store, tmp_path / "staging", "file.pt")
    with pytest.raises(ObjectMissingError):
        store.get_bytes("link/file.pt")
    assert store.head("file.pt") is None
    assert list(store.list()) == []
    put(store, tmp_path / "staging", "file.pt", b"ours", replace=True)
    assert (root / "file.pt").read_bytes() == b"ours"
    assert (outside / "file.pt").read_bytes() == b"theirs"
    assert names(outside) == ["file.pt"]


@pytest.mark.parametrize("path", ["../a.pt", "/a.pt", "a/../../b.pt", ""])
def test_no_path_leads_outside(tmp_path: Path, path: str) -> None:
    with pytest.raises(StoreError, match="no path inside"):
        FolderStore("d", tmp_path / "d").put_bytes(path, b"", replace=True)


def test_a_sweep_removes_temps_of_the_dead_and_a_listing_never_shows_them(tmp_path: Path) -> None:
    root = tmp_path / "destination"
    store = FolderStore(str(root), root)
    put(store, tmp_path / "staging", "a.pt")
    (root / "_ray_sink/tmp/0123").write_bytes(b"half of")
    (root / "_ray_sink/run").mkdir()
    (root / "_ray_sink/run/._SUCCESS.0123456789ab").write_bytes(b"half of")
    assert [found.path for found in store.list()] == ["a.pt"]
    store.sweep()
    assert names(root) == ["a.pt"]


def test_a_file_url_and_its_path_are_one_place(tmp_path: Path) -> None:
    open_store(f"file://{tmp_path}/d%20 #?", UploadOptions()).put_bytes("a", b"1", replace=False)
    assert open_store(f"{tmp_path}/d%20 #?", UploadOptions()).get_bytes("a") == b"1"


def test_a_destination_that_cannot_be_a_folder_is_found_by_the_probe(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DestinationError, match="folder"):
        open_store(str(tmp_path / "file"), UploadOptions()).probe()
    with pytest.raises(DestinationError, match="folder"):
        open_store(str(tmp_path / "file/below"), UploadOptions()).probe()


class Swept(PosixFilesystem):
    """An owner sweeps the folder after the first file that is created in it."""

    def __init__(self, owner: FolderStore) -> None:
        self.owner = owner
        self.fired = 0

    def create_with(self, path: Path, data: bytes) -> None:
        super().create_with(path, data)
        if not self.fired:
            self.fired += 1
            self.owner.sweep()


def test_a_probe_that_an_owner_sweeps_away_is_no_weaker_for_it(tmp_path: Path) -> None:
    filesystem = Swept(FolderStore(str(tmp_path), tmp_path))
    store = FolderStore(str(tmp_path), tmp_path, filesystem)
    assert store.probe().create_only
    assert filesystem.fired == 1
