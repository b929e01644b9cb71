"""Every destination that the contract holds for, and what looks at it from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ray_sink.checksum import checksum_of
from ray_sink.config import UploadOptions
from ray_sink.records import FileRecord, MultipartUpload
from ray_sink.stores import Store, open_store
from ray_sink.stores.fsspec_store import FsspecStore
from tests.servers import S3Bucket, S3Server

MULTIPART_ABOVE = 5 * 2**20


def sign_in(monkeypatch: pytest.MonkeyPatch, server: S3Server, secret: str | None = None) -> None:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    if secret is not None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)


def staged(folder: Path, path: str, data: bytes) -> tuple[Path, FileRecord]:
    """A staged file and its record."""
    local = folder / path
    local.parent.mkdir(parents=True, exist_ok=True)
    local.write_bytes(data)
    return local, FileRecord(path, len(data), checksum_of([data]))


def no_multipart(upload: MultipartUpload) -> None:
    raise AssertionError(f"no multipart upload was expected: {upload}")


@dataclass(frozen=True)
class Place:
    """A store and the same place seen by other means."""

    name: str
    store: Store
    read: Callable[[str], bytes]
    names: Callable[[], list[str]]

    @property
    def is_s3(self) -> bool:
        return self.name in ("s3-obstore", "s3-fsspec", "weak")


def s3_place(name: str, bucket: S3Bucket, engine: str) -> Place:
    store = open_store(
        f"{bucket.url}/some/prefix",
        UploadOptions(engine=engine, multipart_above_bytes=MULTIPART_ABOVE),  # type: ignore[arg-type]
    )
    cut = len("some/prefix/")
    return Place(
        name,
        store,
        read=lambda path: bucket.read(f"some/prefix/{path}"),
        names=lambda: sorted(found[cut:] for found in bucket.names()),
    )


def folder_place(name: str, store: Store, root: Path) -> Place:
    def names() -> list[str]:
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    return Place(name, store, read=lambda path: (root / path).read_bytes(), names=names)


@pytest.fixture(params=["folder", "s3-obstore", "s3-fsspec", "fsspec-local", "weak"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """One destination of each kind, empty."""
    name, root = request.param, tmp_path / "destination"
    if name == "folder":
        found = folder_place(name, open_store(str(root), UploadOptions()), root)
    elif name == "fsspec-local":
        import fsspec

        local = fsspec.filesystem("file", skip_instance_cache=True)
        found = folder_place(name, FsspecStore("other://destination", local, str(root), renames=True), root)
    elif name == "weak":
        server: S3Server = request.getfixturevalue("rclone_s3")
        sign_in(monkeypatch, server)
        found = s3_place(name, server.new_bucket(), "auto")
    else:
        bucket: S3Bucket = request.getfixturevalue("s3_bucket")
        sign_in(monkeypatch, bucket.server)
        found = s3_place(name, bucket, "auto" if name == "s3-obstore" else "fsspec")
    yield found
    found.store.close()


@pytest.fixture(params=["auto", "fsspec"])
def engine(request: pytest.FixtureRequest) -> str:
    """Both engines for S3."""
    name: str = request.param
    return name
